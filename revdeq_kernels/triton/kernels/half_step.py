"""The kernels that are launched: each finds the leaf of its program, as ``triton/device`` wants it.

A tensor comes as a tuple with one for each leaf, all of one type, and those of a half step or of an
adjoint come together (``Stepped``, ``Carried``). `numel` says how many programs each leaf has. A
tuple of another length is another kernel to Triton; so is an integer in a tuple that is 1 or a
multiple of 16, whatever do_not_specialize says: the numbers of a step are parameters. Launch with
OPTIONS.
"""

# A jitted function has a type that only the compiler calls: pyright takes each call for an error.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from ..device.exact_step import ExactStep, dequantize, exact_step, quantize
from ..device.half_step import adjoint, channel_step, half_step
from ..device.residual import norms, residual


def lanes(digits_per_byte: int) -> int:
    """How many bytes of digits a program has."""
    return 1024 if digits_per_byte == 1 else 512


@triton.jit
def programs(numel, BLOCK: tl.constexpr):
    """How many a leaf has; numel + BLOCK - 1 could leave int32."""
    return (numel - 1) // BLOCK + 1


@triton.jit
def find(program, numel, BLOCK: tl.constexpr):
    """The leaf of a program, and which of that leaf's programs it is, both in int32.

    A grid has fewer than 2^31 programs. The sizes can be int64, and in a pass those of one branch
    alone: a leaf has more elements than bytes of digits.
    """
    leaf = program * 0
    part = program
    for k in tl.static_range(len(numel) - 1):
        count = programs(numel[k], BLOCK)
        behind = (leaf == k) & (part >= count)
        leaf = tl.where(behind, k + 1, leaf)
        part = tl.where(behind, part - count, part)
    return leaf, part.to(tl.int32)


@triton.jit
def at(values, leaf):
    """Element `leaf` of a tuple. A branch for each would compile the work of a program as often."""
    value = values[0]
    for k in tl.static_range(1, len(values)):
        value = tl.where(leaf == k, values[k], value)
    return value


@triton.jit(do_not_specialize=["keep", "beta"])
def half_step_kernel(stepped, numel, keep, beta, INVERT: tl.constexpr, BLOCK: tl.constexpr):
    """update_ and invert_; for float64, keep and beta come as the bits of the double."""
    leaf, part = find(tl.program_id(0), numel, BLOCK)
    tensors = [None if t is None else at(t, leaf) for t in stepped]
    half_step(tensors, at(numel, leaf), part, (keep, beta), INVERT, BLOCK)


@triton.jit
def channel_step_kernel(
    stepped, numel, beta, inner, channels, stride, INVERT: tl.constexpr, BLOCK: tl.constexpr
):
    """update_ and invert_ with a tensor of betas, on one leaf."""
    betas = (beta, inner, channels, stride)
    channel_step(stepped, numel, tl.program_id(0), betas, INVERT, BLOCK)


@triton.jit(do_not_specialize=["scale", "beta", "after"])
def adjoint_kernel(carried, numel, scale, beta, after, BLOCK: tl.constexpr):
    """adjoint_; for float64 the numbers come as the bits of the double."""
    leaf, part = find(tl.program_id(0), numel, BLOCK)
    tensors = [None if t is None else at(t, leaf) for t in carried]
    adjoint(tensors, at(numel, leaf), part, (scale, beta, after), BLOCK)


@triton.jit(do_not_specialize=ExactStep._fields)
def exact_kernel(
    stepped,
    flag,
    numel,
    num_bytes,
    scale,
    unscale,
    negate,
    base,
    log2_base,
    inverse,
    reciprocal,
    q_whole,
    q_part,
    half,
    FORM: tl.constexpr,
    DIGITS_PER_BYTE: tl.constexpr,
    LANES: tl.constexpr,
):
    """update_exact_ (with a flag) and invert_exact_ (flag is None)."""
    leaf, part = find(tl.program_id(0), num_bytes, LANES)
    tensors = [None if t is None else at(t, leaf) for t in stepped]
    sizes = (at(numel, leaf), at(num_bytes, leaf))
    step = ExactStep(
        scale, unscale, negate, base, log2_base, inverse, reciprocal, q_whole, q_part, half
    )
    exact_step(tensors, flag, *sizes, part, step, FORM, DIGITS_PER_BYTE, LANES)


@triton.jit
def quantize_kernel(x, out, flag, numel, scale, BLOCK: tl.constexpr):
    """The states that stand for each x; `flag` may be None."""
    leaf, part = find(tl.program_id(0), numel, BLOCK)
    quantize(at(x, leaf), at(out, leaf), flag, at(numel, leaf), part, scale, BLOCK)


@triton.jit
def dequantize_kernel(state, out, numel, unscale, BLOCK: tl.constexpr):
    """The numbers that each state stands for."""
    leaf, part = find(tl.program_id(0), numel, BLOCK)
    dequantize(at(state, leaf), at(out, leaf), at(numel, leaf), part, unscale, BLOCK)


@triton.jit
def residual_kernel(z, f, sums, numel, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """The sums of every chunk of each leaf, one leaf's after another's."""
    program = tl.program_id(0)
    leaf, part = find(program, numel, COLUMNS * ROWS)
    sums += 2 * program.to(tl.int64)
    residual(at(z, leaf), at(f, leaf), sums, at(numel, leaf), part, COLUMNS, ROWS)


@triton.jit
def norms_kernel(sums, result, numel, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """The norms, a program for each leaf."""
    leaf = tl.program_id(0)
    begin = leaf.to(tl.int64) * 0
    for k in tl.static_range(len(numel) - 1):
        begin += tl.where(leaf > k, programs(numel[k], COLUMNS * ROWS), 0)
    count = programs(at(numel, leaf), COLUMNS * ROWS)
    norms(sums + 2 * begin, result + 2 * leaf, count, COLUMNS)
