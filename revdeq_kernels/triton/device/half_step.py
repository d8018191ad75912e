"""One half step in Triton: the arithmetic of ``reference.py``, bit for bit, one pass over memory.

The functions here are what one program does to one leaf; ``triton/kernels`` calls them for all
leaves of a launch. `part` counts the programs of a leaf. Bytes per element (state type, f type),
each read or written once:
  half_step, channel_step   2 sizeof(state) + sizeof(f) + sizeof(cast)
  adjoint                   2 sizeof(grad) + sizeof(vjp) + sizeof(seed)
  exact_step                8 + 1 / digits_per_byte + sizeof(f) + sizeof(cast)
  quantize, dequantize      4 + sizeof(x)

Rounding is spelled out where hardware, compilers and Triton's interpreter differ (float32 to
bfloat16, float32 to int32). A function whose branches differ in type returns once, at its end:
Triton's compiler reads what stands behind a return in a branch too, its interpreter does not.
Launch with OPTIONS. Constants follow ``csrc/half_step.h``, which explains the forms.
"""

# A jitted function has a type that only the compiler calls: pyright takes each call for an error.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

OPTIONS = {"enable_fp_fusion": False}
"""The compiler's options for every kernel here: a fused multiply-add rounds once, not twice."""

BLOCK_LANES: tl.constexpr = tl.constexpr(32)
PART_MASK: tl.constexpr = tl.constexpr(2**30 - 1)
RANGE: tl.constexpr = tl.constexpr(2.0**30 - 256.0)
RANGE_INT: tl.constexpr = tl.constexpr(2**30 - 256)
FIXED_MIN: tl.constexpr = tl.constexpr(-(2.0**31))
FIXED_MAX: tl.constexpr = tl.constexpr(2.0**31 - 128.0)
TWO_23: tl.constexpr = tl.constexpr(2.0**23)
ONE: tl.constexpr = tl.constexpr(30)

SHIFT: tl.constexpr = tl.constexpr(0)
INTEGER: tl.constexpr = tl.constexpr(1)
GENERAL: tl.constexpr = tl.constexpr(2)


class Stepped(NamedTuple):
    """What a half step reads and writes: of each leaf in a launch, of one for a program.

    A cast that is None is not left.
    """

    state: Any
    f: Any
    cast: Any


class ExactlyStepped(NamedTuple):
    """As ``Stepped``, of an exact half step."""

    state: Any
    digits: Any
    f: Any
    cast: Any


class Carried(NamedTuple):
    """What an adjoint reads and writes; `other` is None, or else `seed` is."""

    grad: Any
    other: Any
    vjp: Any
    seed: Any


class ExactStep(NamedTuple):
    """The numbers of an exact half step: csrc's ExactStep, whose offset is half / 2^30."""

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


# ---- storage ---------------------------------------------------------------------------------


@triton.jit
def widen(x):
    """x as float32 (the interpreter's own conversion takes subnormal bfloat16 to 0)."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """x rounded to `dtype`, to nearest even; from float64 to half precision by way of float32."""
    if x.dtype == dtype:
        return x
    if x.dtype == tl.float64:
        y = x.to(tl.float32)
    else:
        y = widen(x)
    if dtype == tl.float32:
        return y
    if dtype == tl.bfloat16:
        bits = y.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(y == y, rounded, (bits >> 16) | 0x40)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return y.to(dtype)


@triton.jit
def store_cast(cast, i, value, mask):
    """The new value in the type that f reads next; `cast` may be None."""
    if cast is not None:
        tl.store(cast + i, narrow(value, cast.dtype.element_ty), mask=mask)


# ---- float states ----------------------------------------------------------------------------


@triton.jit
def as_real(x, dtype: tl.constexpr):
    """A number of the step. Triton passes a Python float as float32, so doubles come as bits."""
    if dtype == tl.float64:
        y = x.to(tl.int64).to(tl.float64, bitcast=True)  # one that fits comes as int32
    else:
        y = x
    return y


@triton.jit
def new_state(y, v, keep, beta, INVERT: tl.constexpr):
    """The half step itself, on numbers of the type that it computes in."""
    if not INVERT:
        new = keep * y + beta * v
    elif y.dtype == tl.float64:
        new = (y - beta * v) / keep
    else:
        new = tl.div_rn(y - beta * v, keep)
    return new


@triton.jit
def load_pair(state, f, i, mask):
    """The state and f in the type that the step computes in: float32, or float64."""
    y = tl.load(state + i, mask=mask)
    v = widen_to(tl.load(f + i, mask=mask), state.dtype.element_ty)
    return widen_to(y, state.dtype.element_ty), v


@triton.jit
def widen_to(x, state: tl.constexpr):
    """`x` in the type that a step of such a state computes in."""
    if state != tl.float64:
        y = widen(x)
    elif x.dtype != tl.float64:
        y = widen(x).to(tl.float64)
    else:
        y = x
    return y


@triton.jit
def half_step(tensors, numel, part, step, INVERT: tl.constexpr, BLOCK: tl.constexpr):
    """update_ and invert_; the step is (1 - beta, beta)."""
    state, f, cast = tensors
    i = part.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < numel
    y, v = load_pair(state, f, i, mask)
    keep = as_real(step[0], state.dtype.element_ty)
    beta = as_real(step[1], state.dtype.element_ty)
    stored = narrow(new_state(y, v, keep, beta, INVERT), state.dtype.element_ty)
    tl.store(state + i, stored, mask=mask)
    store_cast(cast, i, stored, mask)


@triton.jit
def channel_step(tensors, numel, part, betas, INVERT: tl.constexpr, BLOCK: tl.constexpr):
    """update_ and invert_ where element i has beta[stride (i / inner % channels)]."""
    state, f, cast = tensors
    beta, inner, channels, stride = betas
    i = part.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < numel
    y, v = load_pair(state, f, i, mask)
    b = tl.load(beta + i // inner % channels * stride, mask=mask, other=0.5)
    stored = narrow(new_state(y, v, 1.0 - b, b, INVERT), state.dtype.element_ty)
    tl.store(state + i, stored, mask=mask)
    store_cast(cast, i, stored, mask)


# ---- the adjoint -----------------------------------------------------------------------------


@triton.jit
def adjoint(tensors, numel, part, numbers, BLOCK: tl.constexpr):
    """adjoint_ and the part of a pass that carries a gradient; `other` or `seed` may be None."""
    grad, other, vjp, seed = tensors
    scale, beta, after = numbers
    i = part.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < numel
    g = tl.load(grad + i, mask=mask)
    v = tl.load(vjp + i, mask=mask)
    if grad.dtype.element_ty != tl.float64:
        v = widen(v)
    new = as_real(scale, grad.dtype.element_ty) * g
    if other is not None:
        new = new + tl.load(other + i, mask=mask)
    new = new + v
    tl.store(grad + i, as_real(after, grad.dtype.element_ty) * new, mask=mask)
    if seed is not None:
        value = as_real(beta, grad.dtype.element_ty) * new
        tl.store(seed + i, narrow(value, seed.dtype.element_ty), mask=mask)


# ---- fixed point -----------------------------------------------------------------------------


@triton.jit
def to_fixed(f, scale):
    """f scale rounded to nearest even and saturated, NaN as 0; and where it left the range."""
    v = widen(f) * scale
    outside = (tl.abs(v) < RANGE) == 0
    v = tl.where(v == v, v, 0.0)
    v = tl.minimum(tl.maximum(v, FIXED_MIN), FIXED_MAX)
    magnitude = tl.abs(v)
    integer = tl.where(magnitude < TWO_23, (magnitude + TWO_23) - TWO_23, magnitude)
    return tl.where(v < 0, -integer, integer).to(tl.int32), outside


@triton.jit
def from_fixed(y, unscale):
    """The float32 nearest to what the integer stands for."""
    return y.to(tl.float32) * unscale


@triton.jit
def raise_flag(flag, outside):
    """OR 1 into the flag if any element is outside; one atomic per program at the most."""
    bad = tl.max(outside.to(tl.int32), 0)
    tl.atomic_or(flag, bad, mask=bad != 0)


@triton.jit
def quantize(x, out, flag, numel, part, scale, BLOCK: tl.constexpr):
    """out <- x on the grid; `flag` may be None."""
    i = part.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < numel
    fixed, outside = to_fixed(tl.load(x + i, mask=mask, other=0.0), scale)
    tl.store(out + i, fixed, mask=mask)
    if flag is not None:
        raise_flag(flag, outside)


@triton.jit
def dequantize(state, out, numel, part, unscale, BLOCK: tl.constexpr):
    """out <- what `state` stands for."""
    i = part.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < numel
    y = tl.load(state + i, mask=mask, other=0)
    if out.dtype.element_ty == tl.float64:
        tl.store(out + i, y.to(tl.float64) * unscale, mask=mask)
    else:
        tl.store(out + i, narrow(from_fixed(y, unscale), out.dtype.element_ty), mask=mask)


# ---- the exact half step ---------------------------------------------------------------------


@triton.jit
def multiply_shift(a, b, c, SHIFT_BITS: tl.constexpr):
    """The low 32 bits of (a b + c) >> SHIFT_BITS, the product taken in 64 bits."""
    return ((a.to(tl.int64) * b + c) >> SHIFT_BITS).to(tl.int32)


@triton.jit
def divide(d, step, half, FORM: tl.constexpr):
    """E = floor((2^30 d + half) / Q), and the digit."""
    offset = (half >> ONE).to(tl.int32)
    if FORM == SHIFT:
        sum = (d & (step.base - 1)) + offset
        return (d >> step.log2_base) + (sum >> step.log2_base), sum & (step.base - 1)
    e = multiply_shift(d, step.reciprocal, 2147483648, 31)
    whole = d - e * step.q_whole
    if FORM == INTEGER:
        digit = whole + offset
        high = digit >> 31
        return e + high, digit + (high & step.base)
    part = (half.to(tl.int32) - e * step.q_part) & PART_MASK
    digit = whole + multiply_shift(e, -step.q_part, half, 30)
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
    """The state before, by the lowest of the digits; and the other digits."""
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
            e, digit = divide(d, step, step.half, FORM)
            new = fixed + e
            byte += tl.where(mask, digit, 0) * weight
            weight = weight * step.base
            outside = outside | (mask & (far | (new >= RANGE_INT) | (new <= -RANGE_INT)))
        tl.store(state + i, new, mask=mask)
        store_cast(cast, i, from_fixed(new, step.unscale), mask)
    if flag is not None:
        tl.store(digits + lane, byte.to(tl.uint8), mask=in_plane)
        raise_flag(flag, outside)
