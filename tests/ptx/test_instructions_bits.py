"""Logic, shifts and fields of bits, against Python's integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ptx.harness import PREDICATE, TYPES, apply
from tests.ptx.integers import bits_of, check, integers, number

Array = NDArray[Any]


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
