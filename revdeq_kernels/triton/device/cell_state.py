"""An exact half step of the equilibrium cell, forward and reverse, and the packing of its digits.

The forms and results are those of ``exact_step.py``. A byte holds the digits of one element for as
many half steps as fit, so that one shift writes a digit and another shift reads it.
"""

# Pyright reports every call of a jitted function and every field of a constexpr as an error.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from .activations import reciprocal
from .exact_step import ONE, RANGE, RANGE_INT, SHIFT, divide, multiply, nearest
from .half_step import compiled_for_nvidia

INVERSE_OF_WEIGHT: tl.constexpr = tl.constexpr(2.0**32 + 2.0**22)
"""2^32, increased so that the digits of a byte do not fall below the integers they represent."""


# ---- half steps ------------------------------------------------------------------------------


@triton.jit
def update_exact(state, f, packed, tie, step, CELL: tl.constexpr):
    """The new state, `packed` with its digit, and the magnitude that must be inside RANGE.

    For beta < 1 the new state lies between the old state and f, and needs no check of its own.
    """
    v = f * step.scale
    fixed = nearest(v)
    magnitude = tl.abs(v)
    d = state - fixed
    if CELL.overrelaxed:
        d = -d
    half = step.half.to(tl.int64) + tie
    if CELL.form == SHIFT:  # |d| < 2^31 - 2^8: the offset fits
        d += (half >> ONE).to(tl.int32)
        e = d >> step.log2_base
        packed = funnel_right(packed, d, step.log2_base)
    else:
        e, digit = divide(d, step, half, CELL.form)
        packed = packed * step.base + digit
    new = fixed + e
    if CELL.overrelaxed:
        inside = (new < RANGE_INT) & (new > -RANGE_INT)
        magnitude = tl.where(inside, magnitude, float("inf"))
    return new, packed, magnitude


@triton.jit
def invert_exact(state, f, top, tie, step, CELL: tl.constexpr):
    """The previous state; its digit is the highest digit of `top`."""
    fixed = nearest(f * step.scale)
    e = state - fixed
    half = step.half.to(tl.int64) + tie
    if CELL.form == SHIFT:
        d = funnel_left(top, e, step.log2_base) - (half >> ONE).to(tl.int32)
    else:
        digit = tl.umulhi(top.to(tl.uint32, bitcast=True), step.base.to(tl.uint32)).to(tl.int32)
        d = multiply(e, digit, step, half, CELL.form)
    if CELL.overrelaxed:
        d = -d
    return fixed + d


@triton.jit
def larger(a, b):
    """The maximum; NaN if either is NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def outside_range(magnitude):
    """Whether each is outside RANGE or NaN."""
    return (magnitude < RANGE) == 0


# ---- digits ----------------------------------------------------------------------------------


@triton.jit
def store_digits(digits, packed, k, last, i, mask, plane, CELL: tl.constexpr):
    """Store the digits up to half step k if they fill a byte or k is last, and clear `packed`.

    In SHIFT form the digits are the highest bits, with the last digit on top; otherwise they are
    the lowest bits, with the last digit at the bottom.
    """
    if (k % CELL.digits_per_byte == CELL.digits_per_byte - 1) | (k == last):
        byte = packed
        if CELL.form == SHIFT:
            byte = packed >> 24
        place = digits + (k // CELL.digits_per_byte) * plane
        tl.store(place + i, byte.to(tl.uint8), mask=mask)
        packed = packed * 0
    return packed


@triton.jit
def load_digits(digits, weight, k, last, i, mask, plane, step, CELL: tl.constexpr):
    """The digit of half step k as the highest bits of a word, and `weight` for the next call.

    In SHIFT form, `weight` is a number of bits. Otherwise the digits of a byte form a number in
    base `base`; `weight` is the place value above this digit, and the word is the byte as a
    fraction of it. The byte is read again in every half step: it is in the cache, and this saves
    registers.
    """
    begins = (k % CELL.digits_per_byte == CELL.digits_per_byte - 1) | (k == last)
    place = digits + (k // CELL.digits_per_byte) * plane
    byte = tl.load(place + i, mask=mask, other=0).to(tl.int32)
    if CELL.form == SHIFT:
        weight = tl.where(begins, 24, weight + step.log2_base)
        top = byte << weight
    else:
        weight = tl.where(begins, 1, weight) * step.base
        inverse = (reciprocal(weight.to(tl.float32)) * INVERSE_OF_WEIGHT).to(tl.uint32)
        top = byte * inverse.to(tl.int32, bitcast=True)
    return top, weight


@triton.jit
def funnel_right(low, high, bits):
    """`low` shifted right by less than 32 bits, filled with bits of `high`."""
    if compiled_for_nvidia():
        shifted = tl.inline_asm_elementwise(
            "shf.r.wrap.b32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [low, high, bits],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        shifted = (low.to(tl.uint32, bitcast=True) >> bits).to(tl.int32, bitcast=True)
        shifted = shifted | (high << (32 - bits))
    return shifted


@triton.jit
def funnel_left(low, high, bits):
    """`high` shifted left by less than 32 bits, filled with bits of `low`."""
    if compiled_for_nvidia():
        shifted = tl.inline_asm_elementwise(
            "shf.l.wrap.b32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [low, high, bits],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        shifted = (low.to(tl.uint32, bitcast=True) >> (32 - bits)).to(tl.int32, bitcast=True)
        shifted = shifted | (high << bits)
    return shifted
