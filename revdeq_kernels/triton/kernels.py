"""The kernels that are launched: each finds the leaf of its program, as ``half_step.py`` wants it.

Tensors come as tuples with one for each leaf, and `end` as a tuple that says before which program
each leaf ends. A tuple of another length is another kernel to Triton. Launch with OPTIONS.
"""

# A jitted function has a type that only the compiler calls: pyright takes each call for an error.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from .half_step import (
    OPTIONS,
    STEP,
    adjoint,
    channel_step,
    dequantize,
    exact_step,
    half_step,
    quantize,
)
from .residual import norms, residual

__all__ = ["OPTIONS", "STEP"]


@triton.jit
def leaf_of(values, k: tl.constexpr):
    """Element `k`, or None where there are none."""
    if values is None:
        return None
    return values[k]


@triton.jit(do_not_specialize=["end", "keep", "beta"])
def half_step_kernel(
    state, f, cast, numel, end, keep, beta, INVERT: tl.constexpr, BLOCK: tl.constexpr
):
    """update_ and invert_; for float64, keep and beta come as the bits of the double."""
    program = tl.program_id(0)
    begin = 0
    for k in tl.static_range(len(state)):
        if (program >= begin) & (program < end[k]):
            part = program - begin
            half_step(state[k], f[k], leaf_of(cast, k), numel[k], part, keep, beta, INVERT, BLOCK)
        begin = end[k]


@triton.jit
def channel_step_kernel(
    state, f, cast, numel, beta, inner, channels, stride, INVERT: tl.constexpr, BLOCK: tl.constexpr
):
    """update_ and invert_ with a tensor of betas, on one leaf."""
    part = tl.program_id(0)
    channel_step(state, f, cast, numel, part, beta, inner, channels, stride, INVERT, BLOCK)


@triton.jit(do_not_specialize=["end", "scale", "beta", "after"])
def adjoint_kernel(grad, other, vjp, seed, numel, end, scale, beta, after, BLOCK: tl.constexpr):
    """adjoint_; for float64 the numbers come as the bits of the double."""
    program = tl.program_id(0)
    begin = 0
    for k in tl.static_range(len(grad)):
        if (program >= begin) & (program < end[k]):
            adjoint(
                grad[k],
                leaf_of(other, k),
                vjp[k],
                leaf_of(seed, k),
                numel[k],
                program - begin,
                scale,
                beta,
                after,
                BLOCK,
            )
        begin = end[k]


@triton.jit(do_not_specialize=["end", *STEP])
def exact_kernel(
    state,
    digits,
    flag,
    f,
    cast,
    numel,
    num_bytes,
    end,
    scale,
    unscale,
    negate,
    base,
    log2_base,
    inverse,
    reciprocal,
    q_whole,
    q_part,
    offset,
    half,
    FORM: tl.constexpr,
    INVERT: tl.constexpr,
    DIGITS_PER_BYTE: tl.constexpr,
    LANES: tl.constexpr,
):
    """update_exact_ (with a flag) and invert_exact_ (flag is None)."""
    program = tl.program_id(0)
    begin = 0
    for k in tl.static_range(len(state)):
        if (program >= begin) & (program < end[k]):
            exact_step(
                state[k],
                digits[k],
                flag,
                f[k],
                leaf_of(cast, k),
                numel[k],
                num_bytes[k],
                program - begin,
                scale,
                unscale,
                negate,
                base,
                log2_base,
                inverse,
                reciprocal,
                q_whole,
                q_part,
                offset,
                half,
                FORM,
                INVERT,
                DIGITS_PER_BYTE,
                LANES,
            )
        begin = end[k]


@triton.jit(do_not_specialize=["end"])
def quantize_kernel(x, out, flag, numel, end, scale, BLOCK: tl.constexpr):
    """The states that stand for each x; `flag` may be None."""
    program = tl.program_id(0)
    begin = 0
    for k in tl.static_range(len(x)):
        if (program >= begin) & (program < end[k]):
            quantize(x[k], out[k], flag, numel[k], program - begin, scale, BLOCK)
        begin = end[k]


@triton.jit(do_not_specialize=["end", "unscale"])
def dequantize_kernel(state, out, numel, end, unscale, BLOCK: tl.constexpr):
    """The numbers that each state stands for."""
    program = tl.program_id(0)
    begin = 0
    for k in tl.static_range(len(state)):
        if (program >= begin) & (program < end[k]):
            dequantize(state[k], out[k], numel[k], program - begin, unscale, BLOCK)
        begin = end[k]


@triton.jit(do_not_specialize=["end"])
def residual_kernel(z, f, sums, numel, end, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """The sums of every chunk of each leaf."""
    program = tl.program_id(0)
    begin = 0
    for k in tl.static_range(len(z)):
        if (program >= begin) & (program < end[k]):
            residual(z[k], f[k], sums + 2 * begin, numel[k], program - begin, COLUMNS, ROWS)
        begin = end[k]


@triton.jit(do_not_specialize=["end"])
def norms_kernel(sums, result, end, COLUMNS: tl.constexpr, LEAVES: tl.constexpr):
    """The norms, a program for each leaf."""
    program = tl.program_id(0)
    begin = 0
    for k in tl.static_range(LEAVES):
        if program == k:
            norms(sums + 2 * begin, result + 2 * k, end[k] - begin, COLUMNS)
        begin = end[k]
