"""Floating-point arithmetic as defined by PTX, where NumPy differs.

Results that float64 cannot represent are rounded to odd: to the neighbor whose last bit is 1.
Rounding this to a format with at least two bits less gives the same as rounding the exact number,
in every direction (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).

The sign and payload of NaN are those of the host.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from tools.ptx.types import Array

F16, F32, F64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)
U16, U32, U64 = np.dtype(np.uint16), np.dtype(np.uint32), np.dtype(np.uint64)
BITS = {F16: U16, F32: U32, F64: U64}
TINY = {F16: 2.0**-14, F32: 2.0**-126, F64: 2.0**-1022}


def flush(values: Array) -> Array:
    """Flush subnormal float32 numbers to zeros of their sign (``.ftz``)."""
    bits = values.view(U32)
    zero = (bits & np.uint32(0x7F800000)) == 0
    if not zero.any():
        return values
    return np.where(zero, bits & np.uint32(0x80000000), bits).view(F32)


def widen_bf16(bits: Array) -> Array:
    """bf16 as float32."""
    return (bits.astype(U32) << np.uint32(16)).view(F32)


def to_odd(values: Array, errors: Array) -> Array:
    """float64 `values` rounded to odd; `errors` have the sign of (exact number - value)."""
    bits = values.view(np.int64)
    inexact = (errors != 0) & ((bits & 1) == 0) & np.isfinite(values)
    away = (errors > 0) == (values > 0)
    step = np.where(away, 1, -1)
    # Zero cannot move toward zero, but a sum is zero only if it is exact.
    return np.where(inexact & (values != 0), bits + step, bits).view(F64)


def add_to_odd(a: Array, b: Array, rounding: str = "rn") -> Array:
    """a + b in float64, rounded to odd.

    `rounding` is the later rounding: numbers that cancel give -0 if it is downward.
    """
    total, error = _two_sum(a, b)
    total = to_odd(total, np.where(np.isfinite(error), error, 0.0))
    if rounding != "rm":
        return total
    return np.where((total == 0) & (np.signbit(a) | np.signbit(b)), -0.0, total)


def narrow(values: Array, kind: str, rounding: str = "rn") -> Array:
    """Convert float64 or float32 numbers, exact or rounded to odd, to a smaller format.

    `kind` is "f16", "bf16" or "f32"; bf16 is returned as bits. NaN becomes canonical.
    """
    if kind == "bf16":
        return _narrow_bf16(_odd_f32(values) if values.dtype == F64 else values, rounding)
    dtype = F16 if kind == "f16" else F32
    nearest = values.astype(dtype)
    if rounding in ("rn", ""):
        return nearest
    return _directed(nearest.view(BITS[dtype]), nearest.astype(F64), values, rounding).view(dtype)


def _odd_f32(values: Array) -> Array:
    """float64 rounded to odd in float32."""
    near = values.astype(F32)
    toward = _directed(near.view(U32), near.astype(F64), values, "rz")
    inexact = (toward.view(F32).astype(F64) != values) & ~np.isnan(values)
    return np.where(inexact & ~np.isinf(values), toward | np.uint32(1), toward).view(F32)


def _narrow_bf16(values: Array, rounding: str) -> Array:
    bits = values.view(U32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(U16)
    nan = np.isnan(values)
    if rounding not in ("rn", ""):
        exact = widen_bf16(rounded).astype(F64)
        rounded = _directed(rounded, exact, values, rounding)
    return np.where(nan, np.uint16(0x7FFF), rounded) if nan.any() else rounded


def _directed(nearest: Array, value: Array, exact: Array, rounding: str) -> Array:
    """The bits `nearest`, of the number `value`, moved to the neighbor that `rounding` requires.

    For each sign, the bits of floats are ordered like their magnitudes.
    """
    below = value < exact
    above = value > exact
    negative = np.signbit(exact)
    if rounding == "rz":
        away = np.where(negative, below, above)
        return nearest - away.astype(nearest.dtype)
    # Down for rm, up for rp: away from zero for one sign, toward it for the other.
    wrong, grows = (above, negative) if rounding == "rm" else (below, ~negative)
    one = wrong.astype(nearest.dtype)
    return np.where(grows, nearest + one, nearest - one)


def fma_f32(a: Array, b: Array, c: Array, rounding: str = "rn") -> Array:
    """a * b + c in float32, rounded once. The product is exact in float64."""
    product, addend = a.astype(F64) * b.astype(F64), c.astype(F64)
    if rounding == "rn":
        total = product + addend
        nearest = total.astype(F32)
        # Double rounding differs only if the float64 is midway between two float32 numbers.
        midway = (total.view(U64) & np.uint64(0x1FFFFFFF)) == 0x10000000
        midway |= np.abs(total) < TINY[F32]
        if not midway.any():
            return nearest
    return narrow(add_to_odd(product, addend, rounding), "f32", rounding)


def fma_wide(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of numbers with at most 24 bits, as float64 rounded to odd."""
    return add_to_odd(a.astype(F64) * b.astype(F64), c.astype(F64))


def fma_f64(a: Array, b: Array, c: Array) -> Array:
    """a * b + c in float64, rounded once to nearest."""
    a, b, c = np.broadcast_arrays(a, b, c)
    high, low = _two_product(a, b)
    carry, rest = _two_sum(c, low)
    total, error = _two_sum(high, carry)
    out = total + add_to_odd(rest, error)
    # Use integers if a product or its error may leave float64's range.
    size = np.abs(a * b)
    safe = (size == 0) & ((a == 0) | (b == 0)) | (size > 2.0**-900) & (size < 2.0**900)
    safe &= (np.abs(c) < 2.0**1000) & (np.maximum(np.abs(a), np.abs(b)) < 2.0**900)
    out = np.where((a == 0) | (b == 0), a * b + c, out)
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    out = np.where(finite, out, a * b + c)
    unsafe = np.nonzero(finite & ~safe)
    if len(unsafe[0]):
        parts = zip(a[unsafe].tolist(), b[unsafe].tolist(), c[unsafe].tolist(), strict=True)
        out[unsafe] = [_fma_exactly(*numbers) for numbers in parts]
    return out


def _fma_exactly(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c
    try:
        return exact.numerator / exact.denominator
    except OverflowError:
        return float("inf") if exact > 0 else -float("inf")


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The sum and its error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Dekker's product and its error, by Veltkamp's splitting."""
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    product = a * b
    error = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
    return product, error


def _halves(a: Array) -> tuple[Array, Array]:
    scaled = a * 134217729.0  # 2**27 + 1
    high = scaled - (scaled - a)
    return high, a - high


def extremum(a: Array, b: Array, largest: bool) -> Array:
    """The larger or smaller of two numbers: not NaN if possible, and +0 is larger than -0."""
    found = np.fmax(a, b) if largest else np.fmin(a, b)
    equal = a == b
    if not equal.any():
        return found
    bits = BITS[found.dtype]
    either = np.bitwise_and if largest else np.bitwise_or
    return np.where(equal, either(a.view(bits), b.view(bits)), found.view(bits)).view(found.dtype)


def saturate(values: Array) -> Array:
    """Clamp to [0, 1]; NaN and -0 become +0 (``.sat``)."""
    one = values.dtype.type(1)
    return np.where(values > 0, np.minimum(values, one), values.dtype.type(0))
