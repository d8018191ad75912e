"""The kernels: each selects its program's leaf and calls the function in ``triton/device``.

A tensor argument is a tuple with one tensor per leaf, all of one type; the tensors of a half step
or an adjoint are grouped (``Stepped``, ``Carried``). `numel` determines how many programs each leaf
has. For Triton, a tuple of another length is another kernel; so is an integer in a tuple that is 1
or a multiple of 16, regardless of do_not_specialize, which is why the numbers of a step are plain
parameters. Launch with OPTIONS.
"""

# Pyright reports every call of a jitted function as an error.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from ..device.exact_step import ExactStep, dequantize, exact_step, quantize
from ..device.half_step import adjoint, channel_step, half_step
from ..device.residual import norms, residual


def lanes(digits_per_byte: int) -> int:
    """The number of bytes of digits per program."""
    return 1024 if digits_per_byte == 1 else 512


@triton.jit
def programs(numel, BLOCK: tl.constexpr):
    """The number of programs of a leaf; numel + BLOCK - 1 could overflow int32."""
    return (numel - 1) // BLOCK + 1


@triton.jit
def find(program, numel, BLOCK: tl.constexpr):
    """The leaf of a program, and the program's index within it, both int32.

    A grid has fewer than 2^31 programs. The sizes can be int64, even for only one branch of a pass,
    because a leaf has more elements than bytes of digits.
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
    """Element `leaf` of a tuple. A branch per leaf would compile the program's work once each."""
    value = values[0]
    for k in tl.static_range(1, len(values)):
        value = tl.where(leaf == k, values[k], value)
    return value


@triton.jit(do_not_specialize=["keep", "beta"])
def half_step_kernel(stepped, numel, keep, beta, INVERT: tl.constexpr, BLOCK: tl.constexpr):
    """update_ and invert_; for float64, keep and beta are passed as the bits of the double."""
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
    """adjoint_; for float64, the numbers are passed as the bits of the double."""
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
    """The state that represents each x; `flag` may be None."""
    leaf, part = find(tl.program_id(0), numel, BLOCK)
    quantize(at(x, leaf), at(out, leaf), flag, at(numel, leaf), part, scale, BLOCK)


@triton.jit
def dequantize_kernel(state, out, numel, unscale, BLOCK: tl.constexpr):
    """The values that each state represents."""
    leaf, part = find(tl.program_id(0), numel, BLOCK)
    dequantize(at(state, leaf), at(out, leaf), at(numel, leaf), part, unscale, BLOCK)


@triton.jit
def residual_kernel(z, f, sums, numel, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """The sums of all chunks of all leaves, leaf by leaf."""
    program = tl.program_id(0)
    leaf, part = find(program, numel, COLUMNS * ROWS)
    sums += 2 * program.to(tl.int64)
    residual(at(z, leaf), at(f, leaf), sums, at(numel, leaf), part, COLUMNS, ROWS)


@triton.jit
def norms_kernel(sums, result, numel, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """The norms, one program per leaf."""
    leaf = tl.program_id(0)
    begin = leaf.to(tl.int64) * 0
    for k in tl.static_range(len(numel) - 1):
        begin += tl.where(leaf > k, programs(numel[k], COLUMNS * ROWS), 0)
    count = programs(at(numel, leaf), COLUMNS * ROWS)
    norms(sums + 2 * begin, result + 2 * leaf, count, COLUMNS)
