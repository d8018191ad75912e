"""The exact half step and conversions in Triton; see also ``half_step.py``.

Bytes per element:
  exact_step             8 + 1 / digits_per_byte + sizeof(f) + sizeof(cast)
  quantize, dequantize   4 + sizeof(x)

The constants follow ``csrc/half_step.h``, which explains the forms.
"""

# Pyright reports every call of a jitted function as an error.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .half_step import compiled_for_nvidia, narrow, store_cast, widen

BLOCK_LANES: tl.constexpr = tl.constexpr(32)
PART_MASK: tl.constexpr = tl.constexpr(2**30 - 1)
RANGE: tl.constexpr = tl.constexpr(2.0**30 - 256.0)
RANGE_INT: tl.constexpr = tl.constexpr(2**30 - 256)
FIXED_MIN: tl.constexpr = tl.constexpr(-(2.0**31))
FIXED_MAX: tl.constexpr = tl.constexpr(2.0**31 - 128.0)
FIXED_MAX_INT: tl.constexpr = tl.constexpr(2**31 - 128)
TWO_23: tl.constexpr = tl.constexpr(2.0**23)
ONE: tl.constexpr = tl.constexpr(30)

SHIFT: tl.constexpr = tl.constexpr(0)
INTEGER: tl.constexpr = tl.constexpr(1)
GENERAL: tl.constexpr = tl.constexpr(2)


class ExactlyStepped(NamedTuple):
    """Like ``Stepped``, for an exact half step."""

    state: Any
    digits: Any
    f: Any
    cast: Any


class ExactStep(NamedTuple):
    """The numbers of an exact half step: ExactStep in csrc, whose offset is half / 2^30."""

    scale: Any
    unscale: Any
    negate: Any
    base: Any
    log2_base: Any
    inverse: Any
    reciprocal: Any
    q_whole: Any
    q_part: Any
    half: Any


# ---- fixed point -----------------------------------------------------------------------------


@triton.jit
def to_fixed(f, scale):
    """f * scale, rounded to nearest even and saturated, NaN as 0; and whether out of range."""
    v = widen(f) * scale
    return tl.minimum(nearest(v), FIXED_MAX_INT), (tl.abs(v) < RANGE) == 0


@triton.jit
def nearest(v):
    """The int32 nearest to v, ties to even, and 0 for NaN.

    Values beyond int32 saturate, at the upper end to FIXED_MAX or up to 127 more. Compiled for
    NVIDIA, it is one instruction (PTX ISA, cvt to an integer: NaN gives 0, and values saturate).
    """
    if compiled_for_nvidia():
        integer = tl.inline_asm_elementwise(
            "cvt.rni.s32.f32 $0, $1;", "=r,f", [v], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        v = tl.where(v == v, v, 0.0)
        v = tl.minimum(tl.maximum(v, FIXED_MIN), FIXED_MAX)
        magnitude = tl.abs(v)
        whole = tl.where(magnitude < TWO_23, (magnitude + TWO_23) - TWO_23, magnitude)
        integer = tl.where(v < 0, -whole, whole).to(tl.int32)
    return integer


@triton.jit
def from_fixed(y, unscale):
    """The float32 nearest to the value that the integer represents."""
    return y.to(tl.float32) * unscale


@triton.jit
def raise_flag(flag, outside):
    """OR 1 into the flag if any element is outside; at most one atomic per program."""
    bad = tl.max(outside.to(tl.int32), 0)
    tl.atomic_or(flag, bad, mask=bad != 0)


@triton.jit
def quantize(x, out, flag, numel, part, scale, BLOCK: tl.constexpr):
    """out <- x rounded to the grid; `flag` may be None."""
    i = part.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < numel
    fixed, outside = to_fixed(tl.load(x + i, mask=mask, other=0.0), scale)
    tl.store(out + i, fixed, mask=mask)
    if flag is not None:
        raise_flag(flag, outside)


@triton.jit
def dequantize(state, out, numel, part, unscale, BLOCK: tl.constexpr):
    """out <- the value that `state` represents."""
    i = part.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < numel
    y = tl.load(state + i, mask=mask, other=0)
    if out.dtype.element_ty == tl.float64:
        tl.store(out + i, y.to(tl.float64) * unscale, mask=mask)
    else:
        tl.store(out + i, narrow(from_fixed(y, unscale), out.dtype.element_ty), mask=mask)


# ---- the exact half step ---------------------------------------------------------------------


@triton.jit
def multiply_wide(a, b, c):
    """a b + c in 64 bits, for int32, int32 and int64.

    In a loop, LLVM hoists the sign extension of b and multiplies 64 by 64 bits, which takes five
    instructions instead of one.
    """
    if compiled_for_nvidia():
        total = tl.inline_asm_elementwise(
            "mad.wide.s32 $0, $1, $2, $3;",
            "=l,r,r,l",
            [a, b, c],
            dtype=tl.int64,
            is_pure=True,
            pack=1,
        )
    else:
        total = a.to(tl.int64) * b + c
    return total


@triton.jit
def multiply_shift(a, b, c, SHIFT_BITS: tl.constexpr):
    """The low 32 bits of (a b + c) >> SHIFT_BITS, computed in 64 bits."""
    return (multiply_wide(a, b, c) >> SHIFT_BITS).to(tl.int32)


@triton.jit
def divide(d, step, half, FORM: tl.constexpr):
    """E = floor((2^30 d + half) / Q), and the digit; `half` is an int64."""
    offset = (half >> ONE).to(tl.int32)
    if FORM == SHIFT:
        sum = (d & (step.base - 1)) + offset
        return (d >> step.log2_base) + (sum >> step.log2_base), sum & (step.base - 1)
    e = multiply_shift(d, step.reciprocal, tl.cast(2147483648, tl.int64), 31)
    whole = d - e * step.q_whole
    if FORM == INTEGER:
        digit = whole + offset
        high = digit >> 31
        return e + high, digit + (high & step.base)
    rest = multiply_wide(e, -step.q_part, half)
    part = rest.to(tl.int32) & PART_MASK
    digit = whole + (rest >> ONE).to(tl.int32)
    high = digit >> 31
    return e + high, digit + (high & (((part + step.q_part) >> 30) + step.q_whole))


@triton.jit
def multiply(e, digit, step, half, FORM: tl.constexpr):
    """The inverse of divide: d from E and the digit."""
    whole = e * step.q_whole + digit
    if FORM == GENERAL:
        return whole + multiply_shift(e, step.q_part, 1073741823 - half, 30)
    return whole - (half >> ONE).to(tl.int32)


@triton.jit
def invert(y, f, digits, step, tie, FORM: tl.constexpr):
    """The previous state, from the lowest of the digits; and the remaining digits."""
    fixed, _ = to_fixed(f, step.scale)
    if FORM == SHIFT:
        rest = digits >> step.log2_base
        digit = digits & (step.base - 1)
    else:
        rest = (digits * step.inverse) >> 16
        digit = digits - rest * step.base
    d = multiply(y - fixed, digit, step, step.half.to(tl.int64) + tie, FORM)
    return fixed + ((d ^ step.negate) - step.negate), rest


@triton.jit
def exact_step(
    tensors,
    flag,
    numel,
    num_bytes,
    part,
    step,
    FORM: tl.constexpr,
    DIGITS_PER_BYTE: tl.constexpr,
    LANES: tl.constexpr,
):
    """update_exact_ (with a flag) and invert_exact_ (flag is None); one byte of digits per lane."""
    state, digits, f, cast = tensors
    lane = part.to(tl.int64) * LANES + tl.arange(0, LANES)
    first = (lane // BLOCK_LANES) * (BLOCK_LANES * DIGITS_PER_BYTE) + lane % BLOCK_LANES
    in_plane = lane < num_bytes
    byte = tl.zeros([LANES], tl.int32)
    outside = tl.zeros([LANES], tl.int1)
    half = step.half.to(tl.int64) + 0  # the sum widens the interpreter's uint32
    weight = step.base * 0 + 1
    if flag is None:
        byte = tl.load(digits + lane, mask=in_plane, other=0).to(tl.int32)
    for g in tl.static_range(DIGITS_PER_BYTE):
        i = first + g * BLOCK_LANES
        mask = in_plane & (i < numel)
        y = tl.load(state + i, mask=mask, other=0)
        v = tl.load(f + i, mask=mask, other=0.0)
        if flag is None:
            new, byte = invert(y, v, byte, step, 0, FORM)
        else:
            fixed, far = to_fixed(v, step.scale)
            d = ((y - fixed) ^ step.negate) - step.negate
            e, digit = divide(d, step, half, FORM)
            new = fixed + e
            byte += tl.where(mask, digit, 0) * weight
            weight = weight * step.base
            outside = outside | (mask & (far | (new >= RANGE_INT) | (new <= -RANGE_INT)))
        tl.store(state + i, new, mask=mask)
        store_cast(cast, i, from_fixed(new, step.unscale), mask)
    if flag is not None:
        tl.store(digits + lane, byte.to(tl.uint8), mask=in_plane)
        raise_flag(flag, outside)
