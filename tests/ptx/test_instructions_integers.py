"""Integers and comparisons, against Python's integers and fractions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ptx.exact import FORMATS, NAN, samples
from tests.ptx.harness import PREDICATE, TYPES, apply, launch
from tests.ptx.integers import bits_of, check, integers, number
from tools.ptx.errors import Fault

Array = NDArray[Any]

KINDS = ["u16", "s16", "u32", "s32", "u64", "s64"]


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


@pytest.mark.parametrize(
    ("kind", "ftz"), [("f16", ""), ("bf16", ""), ("f32", ""), ("f64", ""), ("f32", ".ftz")]
)
def test_comparisons_of_floats(kind: str, ftz: str) -> None:
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
