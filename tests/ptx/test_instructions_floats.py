"""Floating-point arithmetic, compared bit for bit to fractions that are rounded once."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ptx import exact
from tests.ptx.exact import FORMATS, NAN, Number, agree, each, flushed, samples
from tests.ptx.harness import PREDICATE, TYPES, apply

Array = NDArray[Any]


def type_of(kind: str) -> Array:
    return TYPES[FORMATS[kind].bits]


def of_numbers(
    function: Callable[..., Number], kind: str, rounding: str = "rn", ftz: bool = False
) -> Callable[..., int | None]:
    """The function on bits, its result rounded once."""
    form = FORMATS[kind]

    def on_bits(*operands: int) -> int | None:
        numbers = [form.decode(bits) for bits in operands]
        if not ftz:
            return form.encode(function(*numbers), rounding)
        bits = form.encode(function(*(flushed(n, kind) for n in numbers)), rounding)
        return None if bits is None else form.encode(flushed(form.decode(bits), kind))

    return on_bits


BINARY = {"add": exact.add, "sub": exact.subtract, "mul": exact.multiply, "div": exact.divide}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_arithmetic_rounds_to_nearest(name: str, kind: str) -> None:
    a, b = samples(kind, 200, columns=2)
    found = apply(f"{name}.rn.{kind}", type_of(kind), a, b)
    agree(found, each(of_numbers(BINARY[name], kind), a.tolist(), b.tolist()), kind)


@pytest.mark.parametrize("name", ["add", "sub", "mul"])
@pytest.mark.parametrize("rounding", ["rz", "rm", "rp"])
def test_arithmetic_rounds_in_a_direction(name: str, rounding: str) -> None:
    a, b = samples("f32", 200, columns=2)
    found = apply(f"{name}.{rounding}.f32", TYPES[32], a, b)

    def function(x: Number, y: Number) -> Number:
        return exact.multiply(x, y) if name == "mul" else BINARY[name](x, y, rounding)

    agree(found, each(of_numbers(function, "f32", rounding), a.tolist(), b.tolist()), "f32")


@pytest.mark.parametrize("op", ["add.ftz", "sub.ftz", "mul.ftz", "div.rn.ftz", "div.full.ftz"])
def test_subnormal_numbers_are_zeros_with_ftz(op: str) -> None:
    a, b = samples("f32", 200, columns=2)
    found = apply(f"{op}.f32", TYPES[32], a, b)
    function = of_numbers(BINARY[op[:3]], "f32", ftz=True)
    agree(found, each(function, a.tolist(), b.tolist()), "f32")


@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp"])
def test_fma_of_float32_is_rounded_once(rounding: str) -> None:
    a, b, c = fused_samples("f32")
    found = apply(f"fma.{rounding}.f32", TYPES[32], a, b, c)
    agree(found, each(fused("f32", rounding), a.tolist(), b.tolist(), c.tolist()), "f32")
    assert (found == apply(f"mad.{rounding}.f32", TYPES[32], a, b, c)).all()


def test_fma_of_float64_is_rounded_once() -> None:
    a, b, c = fused_samples("f64")
    found = apply("fma.rn.f64", TYPES[64], a, b, c)
    agree(found, each(fused("f64", "rn"), a.tolist(), b.tolist(), c.tolist()), "f64")
    assert (found == apply("mad.rn.f64", TYPES[64], a, b, c)).all()


def multiply_add(a: Number, b: Number, c: Number) -> Number:
    return exact.add(exact.multiply(a, b), c)


def fused(kind: str, rounding: str, ftz: bool = False) -> Callable[..., int | None]:
    return of_numbers(
        lambda a, b, c: exact.add(exact.multiply(a, b), c, rounding), kind, rounding, ftz
    )


def fused_samples(kind: str) -> list[Array]:
    """With sums that cancel, that lie midway between two numbers, and that are subnormal."""
    a, b, c = samples(kind, 300, columns=3)
    form, dtype = FORMATS[kind], type_of(kind).dtype
    floats = f"f{form.bits // 8}"
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal(600).astype(floats) for _ in range(2))
    with np.errstate(all="ignore"):
        cancel = -(x * y)
        tie = (1 + np.ldexp(np.ones(600, floats), -form.fraction - 1)).astype(floats)
        small = np.ldexp(x, -form.bias - 20 + rng.integers(-30, 30, 600)).astype(floats)
    half = np.ldexp(np.ones(600, floats), -form.fraction // 2)
    more = [
        (x, y, cancel),
        (1 + half, 1 - half, tie * rng.choice([-1, 1, 2.0**-form.fraction], 600).astype(floats)),
        (np.ones(600, floats) + half, np.ones(600, floats) + half, small),
        (small, y, np.ldexp(y, -form.bias - 10).astype(floats)),
    ]
    columns = zip((a, b, c), *more, strict=True)
    return [
        np.concatenate([col[0], *(f.astype(floats).view(dtype) for f in col[1:])])
        for col in columns
    ]


def test_fma_where_rounding_twice_would_err() -> None:
    """A product just below half of the last place of an odd sum; in float32, a subnormal one."""
    a, b, c = 1 + 2.0**-52, 2 - 2.0**-51, 2.0**54 + 4
    columns = [np.array(v) for v in ([a, -a, a], [b, b, b], [c, -c, 2.0**54])]
    found = apply("fma.rn.f64", TYPES[64], *(v.view(np.uint64) for v in columns))
    assert found.view(np.float64).tolist() == [c, -c, 2.0**54]
    x, y, z = (1 + 2.0**-23) * 2.0**-75, (1 - 2.0**-23) * 2.0**-75, 2.0**-127 + 2.0**-149
    small = [np.array([v], np.float32).view(np.uint32) for v in (x, y, z)]
    assert apply("fma.rn.f32", TYPES[32], *small).view(np.float32).tolist() == [z]


def test_fma_with_ftz() -> None:
    a, b, c = fused_samples("f32")
    found = apply("fma.rn.ftz.f32", TYPES[32], a, b, c)
    agree(found, each(fused("f32", "rn", ftz=True), a.tolist(), b.tolist(), c.tolist()), "f32")


@pytest.mark.parametrize("op", ["add.sat", "mul.rz.sat", "fma.rn.sat", "fma.rn.ftz.sat"])
def test_saturated_results_lie_between_zero_and_one(op: str) -> None:
    name = op[:3]
    columns = samples("f32", 200, columns=3 if name == "fma" else 2)
    plain = apply(f"{op.removesuffix('.sat')}.f32", TYPES[32], *columns).view(np.float32)
    found = apply(f"{op}.f32", TYPES[32], *columns).view(np.float32)
    expected = [min(max(v, 0.0), 1.0) if v == v else 0.0 for v in plain.tolist()]
    assert found.tolist() == expected and not np.signbit(found).any()


@pytest.mark.parametrize("ftz", ["", ".ftz"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_pairs_of_float32(name: str, ftz: str) -> None:
    columns = samples("f32", 200, columns=3 if name == "fma" else 2)
    columns = [c[: len(c) // 2 * 2] for c in columns]
    found = apply(f"{name}.rn{ftz}.f32x2", TYPES[64], *(c.view(np.uint64) for c in columns))
    function = of_numbers(BINARY.get(name, multiply_add), "f32", ftz=bool(ftz))
    agree(found.view(np.uint32), each(function, *(c.tolist() for c in columns)), "f32")


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_halves_and_pairs_of_them(name: str, kind: str) -> None:
    columns = fused_samples_of_halves(kind) if name == "fma" else samples(kind, 200, columns=2)
    function = fused(kind, "rn") if name == "fma" else of_numbers(BINARY[name], kind)
    expected = each(function, *(c.tolist() for c in columns))
    agree(apply(f"{name}.rn.{kind}", TYPES[16], *columns), expected, kind)
    packed = apply(f"{name}.rn.{kind}x2", TYPES[32], *(c.view(np.uint32) for c in columns))
    agree(packed.view(np.uint16), expected, kind)


def fused_samples_of_halves(kind: str) -> list[Array]:
    columns = samples(kind, 600, columns=3)
    return [c[: len(c) // 2 * 2] for c in columns]


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("name", ["sqrt", "rcp"])
def test_roots_and_reciprocals(name: str, kind: str) -> None:
    (a,) = samples(kind, 700)
    function = exact.square_root if name == "sqrt" else (lambda x: exact.divide(Fraction(1), x))
    found = apply(f"{name}.rn.{kind}", type_of(kind), a)
    agree(found, each(of_numbers(function, kind), a.tolist()), kind)


@pytest.mark.parametrize("name", ["ex2", "lg2", "rsqrt", "sqrt", "rcp", "tanh", "sin", "cos"])
def test_approximations_are_taken_exactly(name: str) -> None:
    functions = {
        "ex2": np.exp2,
        "lg2": np.log2,
        "rsqrt": lambda x: 1 / np.sqrt(x),
        "sqrt": np.sqrt,
        "rcp": lambda x: 1 / x,
        "tanh": np.tanh,
        "sin": np.sin,
        "cos": np.cos,
    }
    values = np.linspace(-100, 100, 4001).astype(np.float32)
    with np.errstate(all="ignore"):
        expected = functions[name](values.astype(np.longdouble)).astype(np.float32)
    found = apply(f"{name}.approx.f32", TYPES[32], values.view(np.uint32)).view(np.float32)
    np.testing.assert_array_equal(found, expected)


def ordered(a: Number, b: Number, largest: bool) -> Number:
    """The minimum or maximum; NaN loses, and +0 is above -0."""
    if a == NAN or b == NAN:
        return b if a == NAN else a
    assert not isinstance(a, str) and not isinstance(b, str)
    if a == b:
        return a if (exact.sign_of(a) > 0) == largest else b
    return max(a, b) if largest else min(a, b)


@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16", "NaN.f32", "NaN.f16", "NaN.bf16"])
def test_extrema(name: str, kind: str) -> None:
    nan, kind = kind.startswith("NaN"), kind.removeprefix("NaN.")
    a, b = samples(kind, 200, columns=2)

    def function(x: Number, y: Number) -> Number:
        return NAN if nan and NAN in (x, y) else ordered(x, y, name == "max")

    found = apply(f"{name}{'.NaN' if nan else ''}.{kind}", type_of(kind), a, b)
    agree(found, each(of_numbers(function, kind), a.tolist(), b.tolist()), kind)


@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("nan", ["", ".NaN"])
def test_extrema_of_three(name: str, nan: str) -> None:
    """Those of the first two with the third."""
    op, to = f"{name}{nan}.f32", type_of("f32")
    a, b, c = samples("f32", 200, columns=3)
    assert (apply(op, to, a, b, c) == apply(op, to, apply(op, to, a, b), c)).all()


@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16", "f16x2", "bf16x2"])
def test_signs(kind: str) -> None:
    one = kind.removesuffix("x2")
    (a,) = samples(one, 800)
    sign = a.dtype.type(1 << (FORMATS[one].bits - 1))
    packed = a[: len(a) // 2 * 2]
    operand = packed.view(np.uint32) if kind != one else packed
    to = TYPES[8 * operand.dtype.itemsize]
    assert (apply(f"neg.{kind}", to, operand).view(a.dtype) == packed ^ sign).all()
    assert (apply(f"abs.{kind}", to, operand).view(a.dtype) == packed & ~sign).all()


def test_signs_with_ftz_and_copysign() -> None:
    a, b = samples("f32", 200, columns=2)
    absolute = of_numbers(lambda x: x if isinstance(x, str) else abs(x), "f32", ftz=True)
    agree(apply("abs.ftz.f32", TYPES[32], a), each(absolute, a.tolist()), "f32")
    sign = np.uint32(1 << 31)
    found = apply("copysign.f32", TYPES[32], a, b)
    assert (found == (a & sign | b & ~sign)).all()


def test_properties() -> None:
    (a,) = samples("f32", 800)
    values = a.view(np.float32)
    tiny = np.float32(2.0**-126)
    expected = {
        "finite": np.isfinite(values),
        "infinite": np.isinf(values),
        "number": ~np.isnan(values),
        "notanumber": np.isnan(values),
        "normal": np.isfinite(values) & (abs(values) >= tiny),
        "subnormal": (values != 0) & (abs(values) < tiny),
    }
    for name, want in expected.items():
        assert (apply(f"testp.{name}.f32", PREDICATE, a) == want).all(), name
