"""One half step in Triton: the arithmetic of ``reference.py``, bit for bit, in one memory pass.

Each function here is what one program does to one leaf; ``triton/kernels`` calls them for all
leaves of a launch. `part` is the program's index within its leaf. Bytes per element, each read or
written once:
  half_step, channel_step   2 sizeof(state) + sizeof(f) + sizeof(cast)
  adjoint                   2 sizeof(grad) + sizeof(vjp) + sizeof(seed)

Rounding is written out where hardware, compilers and Triton's interpreter differ (float32 to
bfloat16, float32 to int32). If the branches of a function differ in type, the function returns
once, at its end, because Triton's compiler (unlike its interpreter) also compiles the code that
follows a return in a branch. Launch with OPTIONS.
"""

# Pyright reports every call of a jitted function as an error.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton import knobs
from triton.language.target_info import is_cuda

OPTIONS = {"enable_fp_fusion": False}
"""Compiler options for all kernels here: no fused multiply-adds, which round once, not twice."""


INTERPRETED: tl.constexpr = tl.constexpr(bool(knobs.runtime.interpret))


class Stepped(NamedTuple):
    """The tensors of a half step: of all leaves in a launch, of one leaf in a program.

    If cast is None, no cast is written.
    """

    state: Any
    f: Any
    cast: Any


class Carried(NamedTuple):
    """The tensors of an adjoint; either `other` or `seed` is None."""

    grad: Any
    other: Any
    vjp: Any
    seed: Any


@triton.constexpr_function
def compiled_for_nvidia():
    """Whether PTX may be used, which Triton's interpreter and AMD's compiler do not support."""
    return is_cuda() and not INTERPRETED


# ---- storage ---------------------------------------------------------------------------------


@triton.jit
def widen(x):
    """x as float32 (the interpreter's own conversion flushes subnormal bfloat16 to 0)."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """x rounded to `dtype`, to nearest even; from float64 to half precision via float32."""
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
    """Store the new value in the dtype that f reads next; `cast` may be None."""
    if cast is not None:
        tl.store(cast + i, narrow(value, cast.dtype.element_ty), mask=mask)


# ---- float states ----------------------------------------------------------------------------


@triton.jit
def as_real(x, dtype: tl.constexpr):
    """A number of the step. Triton passes Python floats as float32, so doubles arrive as bits."""
    if dtype == tl.float64:
        y = x.to(tl.int64).to(tl.float64, bitcast=True)  # int32 if it fits
    else:
        y = x
    return y


@triton.jit
def new_state(y, v, keep, beta, INVERT: tl.constexpr):
    """The half step itself, in the type in which it is computed."""
    if not INVERT:
        new = keep * y + beta * v
    elif y.dtype == tl.float64:
        new = (y - beta * v) / keep
    else:
        new = tl.div_rn(y - beta * v, keep)
    return new


@triton.jit
def load_pair(state, f, i, mask):
    """The state and f in the type in which the step is computed: float32, or float64."""
    y = tl.load(state + i, mask=mask)
    v = widen_to(tl.load(f + i, mask=mask), state.dtype.element_ty)
    return widen_to(y, state.dtype.element_ty), v


@triton.jit
def widen_to(x, state: tl.constexpr):
    """`x` in the type in which a step on this dtype of state is computed."""
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
    """update_ and invert_; element i has the beta at stride * (i / inner % channels)."""
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
    """adjoint_ and the adjoint part of a pass; `other` or `seed` may be None."""
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
