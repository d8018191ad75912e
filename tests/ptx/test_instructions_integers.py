"""Integers, bits and comparisons, against Python's integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ptx.exact import FORMATS, NAN, samples
from tests.ptx.harness import PREDICATE, TYPES, apply, launch
from tools.ptx.errors import Fault

Array = NDArray[Any]

KINDS = ["u16", "s16", "u32", "s32", "u64", "s64"]


def bits_of(kind: str) -> int:
    return int(kind.lstrip("busf"))


def integers(kind: str, columns: int = 1, seed: int = 0, count: int = 300) -> list[Array]:
    """Bits: the ends of the range in all combinations, small numbers, any at all."""
    bits, rng = bits_of(kind), np.random.default_rng(seed)
    dtype = np.dtype(f"u{bits // 8}")
    top = 1 << (bits - 1)
    edges = np.array([0, 1, 2, 3, top - 1, top, top + 1, 2 * top - 2, 2 * top - 1], dtype)
    mesh = [axis.reshape(-1) for axis in np.meshgrid(*[edges] * columns)]
    return [
        np.concatenate(
            [
                edge,
                rng.integers(0, 2 * top, count, dtype=dtype),
                rng.integers(-40, 40, count).astype(dtype),
                rng.integers(0, 2 * top, count, dtype=dtype)
                >> rng.integers(0, bits, count).astype(dtype),
            ]
        )
        for edge in mesh
    ]


def number(bits: int, kind: str) -> int:
    """The integer that these bits are."""
    width = bits_of(kind)
    return bits - (1 << width) if kind[0] == "s" and bits >> (width - 1) else bits


def check(
    op: str, kinds: list[str], to: str, function: Callable[..., int], columns: list[Array]
) -> None:
    """The instruction gives the function's integers, modulo two to the width of `to`."""
    found = apply(op, TYPES[bits_of(to)], *columns)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    expected = [
        function(*(number(x, kind) for x, kind in zip(row, kinds, strict=True)))
        % (1 << bits_of(to))
        for row in rows
    ]
    wrong = [k for k, (x, y) in enumerate(zip(found.tolist(), expected, strict=True)) if x != y]
    assert not wrong, (op, [int(c[wrong[0]]) for c in columns], found[wrong[0]], expected[wrong[0]])


def toward_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int) -> int:
    return a - b * toward_zero(a, b)


ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("kind", KINDS)
def test_arithmetic(kind: str) -> None:
    bits, columns = bits_of(kind), integers(kind, 2)
    for name, function in ARITHMETIC.items():
        check(f"{name}.{kind}", [kind] * 2, kind, function, columns)
    check(f"mul.hi.{kind}", [kind] * 2, kind, lambda a, b: a * b >> bits, columns)
    a, b = columns
    divided = [a, np.where(b == 0, b.dtype.type(7), b)]
    check(f"div.{kind}", [kind] * 2, kind, toward_zero, divided)
    check(f"rem.{kind}", [kind] * 2, kind, remainder, divided)


@pytest.mark.parametrize("kind", KINDS)
def test_arithmetic_of_three(kind: str) -> None:
    bits, columns = bits_of(kind), integers(kind, 3)
    check(f"mad.lo.{kind}", [kind] * 3, kind, lambda a, b, c: a * b + c, columns)
    check(f"mad.hi.{kind}", [kind] * 3, kind, lambda a, b, c: (a * b >> bits) + c, columns)
    check(f"sad.{kind}", [kind] * 3, kind, lambda a, b, c: abs(a - b) + c, columns)


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_wide_products(kind: str) -> None:
    wide = f"{kind[0]}{2 * bits_of(kind)}"
    a, b = integers(kind, 2)
    c = np.random.default_rng(3).integers(
        0, 2 ** bits_of(wide), len(a), dtype=f"u{bits_of(wide) // 8}"
    )
    check(f"mul.wide.{kind}", [kind] * 2, wide, lambda x, y: x * y, [a, b])
    check(f"mad.wide.{kind}", [kind, kind, wide], wide, lambda x, y, z: x * y + z, [a, b, c])


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_signs(kind: str) -> None:
    check(f"neg.{kind}", [kind], kind, lambda a: -a, integers(kind))
    check(f"abs.{kind}", [kind], kind, lambda a: abs(a), integers(kind))  # noqa: PLW0108


def test_division_by_zero_is_a_fault() -> None:
    with pytest.raises(Fault, match=r"divides by zero: rem\.u32"):
        apply("rem.u32", TYPES[32], np.ones(3, np.uint32), np.zeros(3, np.uint32))


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_logic(kind: str) -> None:
    columns = integers(kind, 2)
    check(f"and.{kind}", [kind] * 2, kind, lambda a, b: a & b, columns)
    check(f"or.{kind}", [kind] * 2, kind, lambda a, b: a | b, columns)
    check(f"xor.{kind}", [kind] * 2, kind, lambda a, b: a ^ b, columns)
    check(f"not.{kind}", [kind], kind, lambda a: ~a, columns[:1])
    check(f"cnot.{kind}", [kind], kind, lambda a: int(a == 0), columns[:1])


def test_logic_of_predicates() -> None:
    a, b = (np.array(c, np.bool_) for c in ([0, 0, 1, 1], [0, 1, 0, 1]))
    assert (apply("and.pred", PREDICATE, a, b) == (a & b)).all()
    assert (apply("or.pred", PREDICATE, a, b) == (a | b)).all()
    assert (apply("xor.pred", PREDICATE, a, b) == (a ^ b)).all()
    assert (apply("not.pred", PREDICATE, a) == ~a).all()


@pytest.mark.parametrize("table", [0x00, 0xFF, 0xF0, 0xE8, 0x96, 0x2D])
def test_tables_of_three_bits(table: int) -> None:
    def function(a: int, b: int, c: int) -> int:
        bits = ((a >> k & 1) << 2 | (b >> k & 1) << 1 | (c >> k & 1) for k in range(32))
        return sum((table >> bit & 1) << k for k, bit in enumerate(bits))

    columns = integers("b32", 3, count=60)
    check_with_tail("lop3.b32", ["b32"] * 3, "b32", function, columns, f", {table:#x}")


def check_with_tail(
    op: str,
    kinds: list[str],
    to: str,
    function: Callable[..., int],
    columns: list[Array],
    tail: str,
) -> None:
    found = apply(op, TYPES[bits_of(to)], *columns, tail=tail)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    assert found.tolist() == [function(*row) for row in rows]


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "u16", "s16", "u32", "s32", "u64", "s64"])
def test_shifts_beyond_the_width_leave_zero_or_the_sign(kind: str) -> None:
    bits = bits_of(kind)
    (a,) = integers(kind)
    amounts = np.random.default_rng(1).integers(0, 2 * bits, len(a)).astype(np.uint32)
    amounts[:6] = [0, bits - 1, bits, bits + 1, 2**31, 2**32 - 1]
    signed = kind if kind[0] == "s" else f"u{bits}"
    check(f"shr.{kind}", [signed, "u32"], kind, lambda x, n: x >> n, [a, amounts])
    if kind[0] == "b":
        check(f"shl.{kind}", [kind, "u32"], kind, lambda x, n: x << min(n, 200), [a, amounts])
    for amount in (0, 3, bits - 1, bits, 77):
        found = apply(f"shr.{kind}", TYPES[bits], a, tail=f", {amount}")
        expected = [(number(x, signed) >> amount) % (1 << bits) for x in a.tolist()]
        assert found.tolist() == expected


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shifts(mode: str) -> None:
    a, b, c = integers("u32", 3, count=100)

    def amount(n: int) -> int:
        return n % 32 if mode == "wrap" else min(n, 32)

    def left(x: int, y: int, n: int) -> int:
        return (y << 32 | x) << amount(n) >> 32

    def right(x: int, y: int, n: int) -> int:
        return (y << 32 | x) >> amount(n)

    check(f"shf.l.{mode}.b32", ["u32"] * 3, "u32", left, [a, b, c])
    check(f"shf.r.{mode}.b32", ["u32"] * 3, "u32", right, [a, b, c])


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_fields_are_extracted(kind: str) -> None:
    """PTX ISA's definition, bit by bit."""
    bits = bits_of(kind)
    (a,) = integers(kind)
    rng = np.random.default_rng(2)
    start, length = (rng.integers(0, bits + 8, len(a)).astype(np.uint32) for _ in range(2))
    length[:20], start[20:40] = 0, 300

    def function(x: int, position: int, size: int) -> int:
        position, size, x = position & 255, size & 255, x % (1 << bits)
        last = min(position + size - 1, bits - 1)
        sign = 0 if kind[0] == "u" or size == 0 else x >> last & 1
        return sum(
            (x >> (k + position) & 1 if k < size and k + position < bits else sign) << k
            for k in range(bits)
        )

    check(f"bfe.{kind}", [kind, "u32", "u32"], kind, function, [a, start, length])


@pytest.mark.parametrize("kind", ["b32", "b64"])
def test_fields_are_inserted(kind: str) -> None:
    bits = bits_of(kind)
    a, b = integers(kind, 2)
    rng = np.random.default_rng(2)
    start, length = (rng.integers(0, bits + 8, len(a)).astype(np.uint32) for _ in range(2))

    def function(x: int, y: int, position: int, size: int) -> int:
        for k in range(size & 255):
            if (at := k + (position & 255)) < bits:
                y = y & ~(1 << at) | (x >> k & 1) << at
        return y

    check(f"bfi.{kind}", [kind, kind, "u32", "u32"], kind, function, [a, b, start, length])


@pytest.mark.parametrize("bits", [32, 64])
def test_counts_of_bits(bits: int) -> None:
    columns = integers(f"b{bits}")
    check(f"popc.b{bits}", [f"b{bits}"], "u32", int.bit_count, columns)
    check(f"clz.b{bits}", [f"b{bits}"], "u32", lambda a: bits - a.bit_length(), columns)
    check(
        f"brev.b{bits}", [f"b{bits}"], f"b{bits}", lambda a: int(f"{a:0{bits}b}"[::-1], 2), columns
    )

    def leading(a: int) -> int:
        return (~a if a < 0 else a).bit_length() - 1

    for kind in (f"u{bits}", f"s{bits}"):
        check(f"bfind.{kind}", [kind], "u32", leading, columns)

        def distance(a: int) -> int:
            return bits - 1 - leading(a) if leading(a) >= 0 else -1

        check(f"bfind.shiftamt.{kind}", [kind], "u32", distance, columns)


def test_bytes_are_permuted() -> None:
    a, b, selector = integers("b32", 3)

    def function(x: int, y: int, picks: int) -> int:
        both, out = (y << 32 | x).to_bytes(8, "little"), 0
        for k in range(4):
            pick = picks >> 4 * k & 15
            byte = both[pick & 7]
            out |= (255 * (byte >> 7) if pick & 8 else byte) << 8 * k
        return out

    check("prmt.b32", ["b32"] * 3, "b32", function, [a, b, selector])


COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


@pytest.mark.parametrize("kind", KINDS)
def test_comparisons_of_integers(kind: str) -> None:
    a, b = integers(kind, 2)
    names = {n: n for n in COMPARISONS} | (UNSIGNED if kind[0] == "u" else {})
    for name, same in names.items():
        found = apply(f"setp.{name}.{kind}", PREDICATE, a, b)
        rows = zip(a.tolist(), b.tolist(), strict=True)
        expected = [COMPARISONS[same](number(x, kind), number(y, kind)) for x, y in rows]
        assert found.tolist() == expected, name


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("ftz", ["", ".ftz"])
def test_comparisons_of_floats(kind: str, ftz: str) -> None:
    if ftz and kind != "f32":
        pytest.skip("no such instruction")
    a, b = samples(kind, 300, columns=2)
    form = FORMATS[kind]

    def decoded(bits: int) -> Any:
        value = form.decode(bits)
        tiny = value != NAN and abs(value) < 2.0 ** (1 - form.bias)  # type: ignore[arg-type]
        return 0.0 if ftz and tiny else value

    rows = [(decoded(x), decoded(y)) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    unordered = [NAN in row for row in rows]
    for name, function in COMPARISONS.items():
        ordered = [not u and function(*row) for u, row in zip(unordered, rows, strict=True)]
        found = apply(f"setp.{name}{ftz}.{kind}", PREDICATE, a, b).tolist()
        assert found == ordered, name
        found = apply(f"setp.{name}u{ftz}.{kind}", PREDICATE, a, b).tolist()
        assert found == [u or o for u, o in zip(unordered, ordered, strict=True)], name
    assert apply(f"setp.nan{ftz}.{kind}", PREDICATE, a, b).tolist() == unordered
    assert apply(f"setp.num{ftz}.{kind}", PREDICATE, a, b).tolist() == [not u for u in unordered]


def test_a_comparison_combined_with_a_predicate_and_its_complement() -> None:
    a = np.arange(32, dtype=np.uint32)
    out = np.zeros((6, 32), np.uint32)
    body = ["mul.wide.u32 %rd3, %r0, 4; add.s64 %rd4, %rd0, %rd3;", "setp.lt.u32 %p1, %r0, 20;"]
    for k, (logic, third) in enumerate([("and", "%p1"), ("or", "!%p1"), ("xor", "%p1")]):
        body.append(f"setp.gt.{logic}.u32 %p2|%p3, %r0, 10, {third};")
        for row, p in ((2 * k, "%p2"), (2 * k + 1, "%p3")):
            body.append(f"selp.u32 %r1, 1, 0, {p}; st.global.u32 [%rd4+{128 * row}], %r1;")
    launch("\n".join(body), out)
    above, below = a > 10, a < 20
    expected = [above & below, ~above & below, above | ~below, ~above | ~below]
    expected += [above ^ below, ~above ^ below]
    assert (out == np.array(expected)).all()


@pytest.mark.parametrize("kind", ["b16", "s32", "b64", "f32", "f64"])
def test_selection(kind: str) -> None:
    a, b = integers(f"u{bits_of(kind)}", 2)
    chosen = np.random.default_rng(0).random(len(a)) < 0.5
    found = apply(f"selp.{kind}", TYPES[bits_of(kind)], a, b, chosen)
    assert (found == np.where(chosen, a, b)).all()
    sign = np.random.default_rng(1).integers(0, 2**32, len(a), dtype=np.uint32)
    found = apply(f"slct.{kind}.s32", TYPES[bits_of(kind)], a, b, sign)
    assert (found == np.where(sign.view(np.int32) >= 0, a, b)).all()


def test_set() -> None:
    a, b = integers("s32", 2)
    less = a.view(np.int32) < b.view(np.int32)
    assert (apply("set.lt.u32.s32", TYPES[32], a, b) == np.where(less, 0xFFFFFFFF, 0)).all()
    assert (apply("set.lt.f32.s32", TYPES[32], a, b) == np.where(less, 0x3F800000, 0)).all()
