"""Floating-point arithmetic with fractions, independent of NumPy and of the executor.

Numbers are given by their bits. Results are exact rational numbers, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
NAN = "nan"
Number = Fraction | float | str
"""A fraction; or a float for 0.0, -0.0 and infinities; or NAN."""


@dataclass(frozen=True)
class Format:
    """A binary format: its total bits, and the bits of its stored fraction."""

    bits: int
    fraction: int

    @property
    def bias(self) -> int:
        """The bias of the exponent."""
        return (1 << (self.bits - self.fraction - 2)) - 1

    @property
    def infinity(self) -> int:
        """The bits of +inf."""
        return ((1 << (self.bits - self.fraction - 1)) - 1) << self.fraction

    def decode(self, bits: int) -> Number:
        """The number with these bits."""
        sign, magnitude = bits >> (self.bits - 1), bits & ((1 << (self.bits - 1)) - 1)
        if magnitude > self.infinity:
            return NAN
        if magnitude == self.infinity:
            return -math.inf if sign else math.inf
        if magnitude == 0:
            return -0.0 if sign else 0.0
        exponent, fraction = magnitude >> self.fraction, magnitude & ((1 << self.fraction) - 1)
        if exponent:
            fraction |= 1 << self.fraction
        value = Fraction(fraction) * Fraction(2) ** (max(exponent, 1) - self.bias - self.fraction)
        return -value if sign else value

    def encode(self, number: Number, rounding: str = "rn") -> int | None:
        """The bits of a number, rounded; None for NaN.

        `rounding` is rn, rz, rm or rp, or rna: to nearest, of two as near the larger magnitude.
        """
        if number == NAN:
            return None
        assert not isinstance(number, str)
        negative = number < 0 or (number == 0 and math.copysign(1.0, float(number)) < 0)
        sign = int(negative) << (self.bits - 1)
        if isinstance(number, float):
            return sign | (self.infinity if math.isinf(number) else 0)
        size = abs(number)
        # The exponent of the last bit: the leading bit's minus the fraction bits, or the smallest.
        leading = size.numerator.bit_length() - size.denominator.bit_length()
        leading -= size < Fraction(2) ** leading
        last = max(leading, 1 - self.bias) - self.fraction
        units = size / Fraction(2) ** last
        whole, rest = divmod(units.numerator, units.denominator)
        half = Fraction(rest, units.denominator) - Fraction(1, 2)
        up = {
            "rn": half > 0 or (half == 0 and whole & 1 == 1),
            "rna": half >= 0,
            "rz": False,
            "rm": rest > 0 and negative,
            "rp": rest > 0 and not negative,
        }[rounding]
        whole += up
        # The bits of magnitudes are consecutive: a carry continues into the exponent.
        magnitude = whole + max(last + self.fraction - 1 + self.bias, 0) * (1 << self.fraction)
        if magnitude >= self.infinity:
            ends = rounding in ("rn", "rna", "rm" if negative else "rp")
            return sign | (self.infinity if ends else self.infinity - 1)
        return sign | magnitude


FORMATS = {
    "f16": Format(16, 10),
    "bf16": Format(16, 7),
    "f32": Format(32, 23),
    "f64": Format(64, 52),
}


def add(a: Number, b: Number, rounding: str = "rn") -> Number:
    """a + b; the sum of two numbers that cancel is +0, or -0 if rounded down."""
    if NAN in (a, b):
        return NAN
    assert not isinstance(a, str) and not isinstance(b, str)
    if is_infinite(a) or is_infinite(b):
        return NAN if is_infinite(a) and is_infinite(b) and a != b else (a if is_infinite(a) else b)
    if a == 0 and b == 0 and sign_of(a) == sign_of(b):
        return a
    total = Fraction(a) + Fraction(b)
    return total or (-0.0 if rounding == "rm" else 0.0)


def subtract(a: Number, b: Number, rounding: str = "rn") -> Number:
    """a - b."""
    return add(a, b if isinstance(b, str) else -b, rounding)


def multiply(a: Number, b: Number) -> Number:
    """a * b."""
    if NAN in (a, b):
        return NAN
    assert not isinstance(a, str) and not isinstance(b, str)
    sign = sign_of(a) * sign_of(b)
    if is_infinite(a) or is_infinite(b):
        return NAN if a == 0 or b == 0 else sign * math.inf
    return sign * 0.0 if a == 0 or b == 0 else Fraction(a) * Fraction(b)


def divide(a: Number, b: Number) -> Number:
    """a / b."""
    if NAN in (a, b):
        return NAN
    assert not isinstance(a, str) and not isinstance(b, str)
    sign = sign_of(a) * sign_of(b)
    if is_infinite(a):
        return NAN if is_infinite(b) else sign * math.inf
    if b == 0:
        return NAN if a == 0 else sign * math.inf
    return sign * 0.0 if is_infinite(b) or a == 0 else Fraction(a) / Fraction(b)


def square_root(a: Number) -> Number:
    """The root to 100 bits; one more bit is set if it is not exact."""
    if a == NAN or (not isinstance(a, str) and a < 0):
        return NAN
    if isinstance(a, float):
        return a
    assert isinstance(a, Fraction)
    shift = 220 + (a.denominator.bit_length() & 1)
    scaled = a.numerator * a.denominator << 2 * shift
    root = math.isqrt(scaled)
    return Fraction(2 * root + (root * root != scaled), a.denominator << (shift + 1))


def is_infinite(a: Number) -> bool:
    """Whether it is an infinity."""
    return isinstance(a, float) and math.isinf(a)


def sign_of(a: Fraction | float) -> int:
    """1 or -1, also for zeros."""
    return -1 if a < 0 or (a == 0 and math.copysign(1.0, float(a)) < 0) else 1


def flushed(a: Number, kind: str = "f32") -> Number:
    """Subnormal numbers as zeros."""
    if isinstance(a, Fraction) and abs(a) < Fraction(2) ** (1 - FORMATS[kind].bias):
        return sign_of(a) * 0.0
    return a


def each(function: Callable[..., int | None], *columns: Iterable[int]) -> list[int | None]:
    """Apply the function to each row of integers."""
    return [function(*row) for row in zip(*columns, strict=True)]


def agree(found: Array, expected: list[int | None], kind: str) -> None:
    """Compare bits; None stands for any NaN."""
    form = FORMATS[kind]
    for position, (bits, want) in enumerate(zip(found.tolist(), expected, strict=True)):
        if want is None:
            assert form.decode(bits) == NAN, (position, hex(bits), "not NaN")
        else:
            assert bits == want, (position, hex(bits), hex(want))


def samples(kind: str, count: int, seed: int = 0, columns: int = 1) -> list[Array]:
    """Bits of `kind`: edge cases in all combinations, ordinary numbers, and arbitrary bits."""
    form, rng = FORMATS[kind], np.random.default_rng(seed)
    dtype = np.dtype(f"u{form.bits // 8}")
    one = form.bias << form.fraction
    edges = [0, 1, 2, (1 << form.fraction) - 1, 1 << form.fraction, one, one + 1, one - 1]
    edges += [form.infinity - 1, form.infinity, form.infinity + 1, one + (1 << form.fraction)]
    edges += [bits | 1 << (form.bits - 1) for bits in edges]
    grid = np.array(edges, dtype)
    if columns < 3:
        mesh = [axis.reshape(-1) for axis in np.meshgrid(*[grid] * columns)]
    else:
        mesh = [rng.choice(grid, 600) for _ in range(columns)]
    out = []
    for edge in mesh:
        wild = rng.integers(0, 1 << form.bits, count, dtype=dtype)
        near = one + rng.integers(-(20 << form.fraction), 20 << form.fraction, count)
        near = near.astype(dtype) & dtype.type((1 << (form.bits - 1)) - 1)
        near |= (rng.integers(0, 2, count) << (form.bits - 1)).astype(dtype)
        near = np.where(
            rng.random(count) < 0.5, near & ~dtype.type((1 << form.fraction // 2) - 1), near
        )
        out.append(np.concatenate([edge, wild, near]))
    return out
