"""Conversions, against fractions and Python's integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.ptx.exact import FORMATS, NAN, Format, Number, agree, each, flushed, is_infinite, samples
from tests.ptx.harness import TYPES, apply
from tests.ptx.integers import bits_of, integers, number

INTEGERS = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]


def ends_of(kind: str) -> tuple[int, int]:
    """The smallest and the largest integer."""
    half = 1 << (bits_of(kind) - 1)
    return (-half, half - 1) if kind[0] == "s" else (0, 2 * half - 1)


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("to", INTEGERS)
def test_integers_to_integers(source: str, to: str) -> None:
    (a,) = integers(source)
    width = bits_of(to)
    numbers = [number(x, source) for x in a.tolist()]
    found = apply(f"cvt.{to}.{source}", TYPES[width], a)
    assert found.tolist() == [x % (1 << width) for x in numbers]
    low, high = ends_of(to)
    found = apply(f"cvt.sat.{to}.{source}", TYPES[width], a)
    assert found.tolist() == [min(max(x, low), high) % (1 << width) for x in numbers]


@pytest.mark.parametrize(("to", "extended"), [("s8", np.int8), ("u8", np.uint8)])
def test_narrow_results_are_extended_in_wider_registers(to: str, extended: type) -> None:
    a = np.arange(512, dtype=np.uint32)
    found = apply(f"cvt.{to}.u32", TYPES[32], a)
    assert (found.view(np.int32) == a.astype(extended)).all()


ROUNDED = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


@pytest.mark.parametrize("source", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("to", ["u8", "s8", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("rounding", ROUNDED)
def test_floats_to_integers(source: str, to: str, rounding: str) -> None:
    """PTX ISA 9.0: NaN is zero, from f64 or to 64 bits the number with the upper bit alone."""
    (a,) = samples(source, 500)
    if source != "f16":  # and numbers around the ends of the range
        near = np.ldexp(np.linspace(-2, 2, 801), bits_of(to)).astype(np.float32)
        near = near.astype(np.float64) if source == "f64" else near
        near = near.view(f"u{near.dtype.itemsize}")
        a = np.concatenate(
            [a, (near >> np.uint32(16)).astype(np.uint16) if source == "bf16" else near]
        )
    width = bits_of(to)
    low, high = ends_of(to)

    def function(bits: int) -> int:
        value = FORMATS[source].decode(bits)
        if value == NAN:
            return 1 << (width - 1) if source == "f64" or width == 64 else 0
        if is_infinite(value):
            whole = high if value == math.inf else low
        else:
            whole = ROUNDED[rounding](value)
        return min(max(whole, low), high) % (1 << width)

    found = apply(f"cvt.{rounding}.{to}.{source}", TYPES[width], a)
    assert found.tolist() == [function(bits) for bits in a.tolist()]


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("to", ["f16", "bf16", "f32", "f64"])
def test_integers_to_floats(source: str, to: str) -> None:
    (a,) = integers(source, count=500)
    form = FORMATS[to]
    numbers = [Fraction(number(x, source)) or 0.0 for x in a.tolist()]
    # To f64 of 64 bits, other roundings are refused.
    roundings = ["rn"] if to == "f64" and bits_of(source) == 64 else ["rn", "rz", "rm", "rp"]
    for rounding in roundings:
        found = apply(f"cvt.{rounding}.{to}.{source}", TYPES[form.bits], a)
        agree(found, [form.encode(x, rounding) for x in numbers], to)


@pytest.mark.parametrize("source", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("to", ["f32", "f64"])
def test_wider_formats_have_every_number(source: str, to: str) -> None:
    (a,) = samples(source, 1000)
    found = apply(f"cvt.{to}.{source}", TYPES[FORMATS[to].bits], a)
    agree(found, [FORMATS[to].encode(FORMATS[source].decode(x)) for x in a.tolist()], to)


NARROW = [("f32", "f16"), ("f64", "f16"), ("f64", "f32")]
NARROWED = [(*pair, rounding) for pair in NARROW for rounding in ("rn", "rz", "rm", "rp")]
NARROWED += [("f32", "bf16", "rn"), ("f32", "bf16", "rz")]


def narrow_samples(source: str, to: str) -> np.ndarray:
    """Around every midpoint of two neighbors of the narrow format, too."""
    (a,) = samples(source, 500)
    (b,) = samples(to, 250)
    wide, form = FORMATS[source], FORMATS[to]
    dtype = a.dtype.type
    exact = [wide.encode(form.decode(x)) for x in b.tolist()]
    b = np.array([x for x in exact if x is not None], dtype)
    shift = wide.fraction - form.fraction
    half = dtype(1 << (shift - 1))
    return np.concatenate([a, b, b + half, b + half - dtype(1), b + half + dtype(1), b - half])


@pytest.mark.parametrize(("source", "to", "rounding"), NARROWED)
def test_narrower_formats_are_rounded_once(source: str, to: str, rounding: str) -> None:
    a, form = narrow_samples(source, to), FORMATS[to]
    found = apply(f"cvt.{rounding}.{to}.{source}", TYPES[form.bits], a)
    agree(found, [form.encode(FORMATS[source].decode(x), rounding) for x in a.tolist()], to)


def finished(value: Number, relu: bool, last: Fraction | None) -> Number:
    if value == NAN:
        return value
    assert not isinstance(value, str)
    if relu and value < 0:
        return 0.0
    if last is None or abs(value) <= last:
        return value
    return last if value > 0 else -last


@pytest.mark.parametrize("to", ["f16", "bf16"])
@pytest.mark.parametrize("rounding", ["rn", "rz"])
@pytest.mark.parametrize("finish", ["", ".relu", ".satfinite", ".relu.satfinite"])
def test_pairs_and_finishes(to: str, rounding: str, finish: str) -> None:
    a, form = narrow_samples("f32", to), FORMATS[to]
    b = np.roll(a, 1)
    decoded = form.decode(form.infinity - 1)
    last = decoded if "satfinite" in finish and isinstance(decoded, Fraction) else None

    def function(bits: int) -> int | None:
        value = finished(FORMATS["f32"].decode(bits), "relu" in finish, last)
        return form.encode(value, rounding)

    expected = each(function, a.tolist())
    if finish or to == "bf16":
        agree(apply(f"cvt.{rounding}{finish}.{to}.f32", TYPES[16], a), expected, to)
    pair = apply(f"cvt.{rounding}{finish}.{to}x2.f32", TYPES[32], a, b)
    agree((pair >> np.uint32(16)).astype(np.uint16), expected, to)
    agree((pair & np.uint32(0xFFFF)).astype(np.uint16), each(function, b.tolist()), to)


@pytest.mark.parametrize("rounding", ["rna", "rn", "rz"])
def test_tf32_is_float32_with_ten_bits(rounding: str) -> None:
    (a,) = samples("f32", 1000)
    form = Format(19, 10)
    half = np.uint32(1 << 12)
    a = np.concatenate([a, a & ~(2 * half - np.uint32(1)) | half])
    found = apply(f"cvt.{rounding}.tf32.f32", TYPES[32], a)

    def function(bits: int) -> int | None:
        rounded = form.encode(FORMATS["f32"].decode(bits), rounding)
        return None if rounded is None else rounded << 13

    expected = each(function, a.tolist())
    if rounding == "rz":  # infinity stays itself
        assert found[a == 0x7F800000].tolist() == [0x7F800000] * int((a == 0x7F800000).sum())
    agree(found, expected, "f32")


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("rounding", ROUNDED)
def test_whole_numbers_in_the_same_format(kind: str, rounding: str) -> None:
    (a,) = samples(kind, 500)
    form = FORMATS[kind]

    def function(bits: int) -> int | None:
        value = form.decode(bits)
        if not isinstance(value, Fraction):
            return form.encode(value)
        whole = Fraction(ROUNDED[rounding](value))
        return form.encode(whole or math.copysign(0.0, float(value > 0) - 0.5))

    found = apply(f"cvt.{rounding}.{kind}.{kind}", TYPES[form.bits], a)
    agree(found, each(function, a.tolist()), kind)


def test_ftz_and_sat() -> None:
    (a,) = samples("f32", 700)
    form = FORMATS["f32"]
    decoded = [flushed(form.decode(x)) for x in a.tolist()]
    agree(apply("cvt.ftz.f32.f32", TYPES[32], a), [form.encode(x) for x in decoded], "f32")
    limited = [0.0 if x == NAN or x <= 0 else min(x, Fraction(1)) for x in decoded]  # type: ignore[operator,type-var]
    agree(apply("cvt.ftz.sat.f32.f32", TYPES[32], a), [form.encode(x) for x in limited], "f32")
    found = apply("cvt.rn.ftz.f16.f32", TYPES[16], a)
    agree(found, [FORMATS["f16"].encode(x) for x in decoded], "f16")
    found = apply("cvt.rzi.ftz.s32.f32", TYPES[32], a)
    assert (found == apply("cvt.rzi.s32.f32", TYPES[32], a)).all()
    (b,) = samples("f64", 700)
    results = [form.encode(FORMATS["f64"].decode(x)) for x in b.tolist()]
    flushed_results = [None if x is None else form.encode(flushed(form.decode(x))) for x in results]
    agree(apply("cvt.rn.ftz.f32.f64", TYPES[32], b), flushed_results, "f32")
