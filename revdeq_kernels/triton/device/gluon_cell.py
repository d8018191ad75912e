"""What the Gluon kernels of the equilibrium cell do to a tile, and where its data is placed."""

# Pyright reports calls of jitted functions and uses of constants as errors.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma

from .activations import activation, inside_act, times_slope
from .cell import invert, number_of, operand
from .cell_state import larger, load_digits, outside_range
from .half_step import INTERPRETED, widen

SLICE: gl.constexpr = gl.constexpr(16)
"""Terms of each sum of a TF32 product that are in registers at once."""

# ---- layouts and shared memory ---------------------------------------------------------------


@gluon.constexpr_function
def accumulator(kind, rows, features, warps):
    """The layout of a product: a warpgroup has all rows of its part of the columns.

    For float32, a warp has all rows if there are few, otherwise a part of rows and columns.
    """
    if kind.is_fp32():
        along = 1 if rows < 64 else 4
        return gl.NVMMADistributedLayout(
            version=[2, 0], warps_per_cta=[along, warps // along], instr_shape=[16, 8]
        )
    share = features // (warps // 4)
    return gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, warps // 4], instr_shape=[16, share, 16]
    )


@gluon.constexpr_function
def rows_of_w(kind, features, warps):
    """The layout in which W is loaded: 16 bytes per thread."""
    size = 128 // kind.primitive_bitwidth
    return gl.BlockedLayout(
        [1, size], [32 * size // features, features // size], [warps, 1], [1, 0]
    )


@gluon.constexpr_function
def shared(bits):
    """The layout of tensors in shared memory."""
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=bits, rank=2)


@gluon.constexpr_function
def factors(kind):
    """The layout of factors in shared memory: as wgmma reads it, or swizzled for float32."""
    if kind.is_fp32():
        return gl.SwizzledSharedLayout(vec=4, per_phase=1, max_phase=4, order=[1, 0])
    return shared(kind.primitive_bitwidth)


@gluon.jit
def load_w(w, FEATURES: gl.constexpr):
    """W [out, in] as a factor in shared memory."""
    kind: gl.constexpr = w.dtype.element_ty
    layout: gl.constexpr = rows_of_w(kind, FEATURES, gl.num_warps())
    row = gl.arange(0, FEATURES, gl.SliceLayout(1, layout))
    column = gl.arange(0, FEATURES, gl.SliceLayout(0, layout))
    factor = new_factor(kind, FEATURES, FEATURES)
    values = gl.load(w + row[:, None] * FEATURES + column[None, :])
    write_factor(factor, values, kind)
    return factor


@gluon.jit
def tie_of(k):
    """How half step k breaks ties, like ``composite.tie``."""
    return (k // 2 + k % 2) % 2


@gluon.jit
def of_rows(kind: gl.constexpr, TILE: gl.constexpr, layout: gl.constexpr):
    """One number per row of a tile, initially 0, in shared memory to save registers."""
    shape: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    return gl.allocate_shared_memory(kind, [TILE], shape, gl.zeros([TILE], kind, layout))


@gluon.jit
def over_columns(x, kind: gl.constexpr):
    """x; for 16-bit products, the maxima of groups of 8 columns that one thread holds.

    This keeps 4 of 32 numbers per thread, to save registers.
    """
    if INTERPRETED or kind == gl.float32:
        kept = x
    else:
        parts: gl.constexpr = [x.shape[0], x.shape[1] // 64, 8, 8]
        kept = gl.reduce(x.reshape(parts), 2, larger)
    return kept


@gluon.jit
def rows_outside(reached, layout: gl.constexpr):
    """1 for each row with a number outside RANGE, given the result of ``over_columns``."""
    outside = outside_range(reached).to(gl.int32)
    for _ in gl.static_range(len(reached.shape) - 1):
        outside = gl.max(outside, 1)
    return gl.convert_layout(outside, layout)


@gluon.jit
def new_factor(kind: gl.constexpr, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """Shared memory for a factor of products; in float32, for its two TF32 parts."""
    first = gl.allocate_shared_memory(kind, [ROWS, COLUMNS], factors(kind))
    if kind == gl.float32:
        parts = (first, gl.allocate_shared_memory(kind, [ROWS, COLUMNS], factors(kind)))
    else:
        parts = (first,)
    return parts


@gluon.jit
def write_factor(factor, x, kind: gl.constexpr):
    """Write x (from ``operand``) to a factor in shared memory; in float32, split into two parts."""
    if kind == gl.float32:
        high, low = in_two(x)
        factor[0].store(high)
        factor[1].store(low)
    else:
        factor[0].store(x)
    fence(kind)


@gluon.jit
def turned(factor):
    """The transposed factor."""
    if len(factor) == 2:
        parts = (factor[0].permute((1, 0)), factor[1].permute((1, 0)))
    else:
        parts = (factor[0].permute((1, 0)),)
    return parts


@gluon.jit
def fence(kind: gl.constexpr):
    """A fence between stores of factors and wgmma, which reads them asynchronously."""
    if kind != gl.float32:
        fence_async_shared()


# ---- products --------------------------------------------------------------------------------


@gluon.jit
def multiply(a, b, total, ADD: gl.constexpr, kind: gl.constexpr, layout: gl.constexpr):
    """total + a b, for factors in shared memory; total must be 0 unless ADD.

    Uses wgmma, or for float32 three TF32 products, SLICE terms of each sum at a time, so that both
    parts fit into registers.
    """
    if kind == gl.float32:
        for k in gl.static_range(a[0].shape[1] // SLICE):
            high_a, low_a = left_slice(a[0], k, layout), left_slice(a[1], k, layout)
            high_b, low_b = right_slice(b[0], k, layout), right_slice(b[1], k, layout)
            total = mma_v2(low_a, high_b, total, input_precision="tf32")
            total = mma_v2(high_a, low_b, total, input_precision="tf32")
            total = mma_v2(high_a, high_b, total, input_precision="tf32")
    else:
        total = warpgroup_mma(a[0], b[0], total, use_acc=ADD)
    return total


@gluon.jit
def left_slice(factor, k: gl.constexpr, layout: gl.constexpr):
    """SLICE columns of a left factor."""
    return factor.slice(k * SLICE, SLICE, 1).load(gl.DotOperandLayout(0, layout, 1))


@gluon.jit
def right_slice(factor, k: gl.constexpr, layout: gl.constexpr):
    """SLICE rows of a right factor."""
    return factor.slice(k * SLICE, SLICE, 0).load(gl.DotOperandLayout(1, layout, 1))


@gluon.jit
def in_two(x):
    """x as a sum of two TF32 numbers, to a relative error of 2^-22; for infinity, one is NaN."""
    high = to_tf32(x)
    return high, to_tf32(x - high)


@gluon.jit
def to_tf32(x):
    """x rounded to the 11 bits of TF32, ties away from 0; NaN is kept, as its bits may overflow."""
    bits = x.to(gl.int32, bitcast=True)
    return gl.where(x == x, ((bits + 0x1000) & -0x2000).to(gl.float32, bitcast=True), x)


@gluon.jit
def took_step(steps_of, k, layout: gl.constexpr):
    """Which rows took the step of half step k; read from memory each time, to save registers."""
    return k // 2 < steps_of.load(gl.SliceLayout(1, layout))


# ---- half a step ------------------------------------------------------------------------------


@gluon.jit
def before_act(factor, w_t, bias, layout: gl.constexpr):
    """W s + u, for the factor s in shared memory."""
    zero = gl.full(factor[0].shape, 0.0, gl.float32, layout)
    return multiply(factor, w_t, zero, False, bias.dtype, layout) + widen(bias.load(layout))


@gluon.jit
def adjoint(
    state,
    read,
    grad,
    other_grad,
    digits,
    weight,
    k,
    last,
    of_w,
    buffers,
    place,
    step,
    start,
    steps_of,
    layout: gl.constexpr,
    w_layout: gl.constexpr,
    CELL: gl.constexpr,
):
    """A half step in reverse, of `state` by f of the other state, which `read` holds as a factor.

    `grad` is the gradient of `state`; `other_grad` holds that of the other state. Afterwards the
    two are exchanged for the next half step, and `read` holds `state`. Returns the gradients of the
    other state and of W, and the weight for ``load_digits``.
    """
    w, bias, factor, grads_u = buffers
    first, i, mask, plane, unscales = place
    keep, beta = step.keep, step.beta
    if CELL.halting:
        beta = gl.where(took_step(steps_of, k, layout), beta, 0.0)[:, None]
    kind: gl.constexpr = bias.dtype
    x = before_act(read, turned(w), bias, layout)
    e = inside_act(x, CELL)
    f = activation(x, e, CELL)
    g = times_slope(beta * grad, x, e, f, CELL)
    grads_u.store(grads_u.load(layout) + g)
    write_factor(factor, operand(g, kind), kind)
    of_w = multiply(turned(factor), read, of_w, True, kind, w_layout)
    tl.debug_barrier()  # keeps the reads below from moving up, for which ptxas would spill
    digit = 0
    if CELL.exact:
        digit, weight = load_digits(digits + first, weight, k, last, i, mask, plane, step, CELL)
    before = invert(state.load(layout), f, digit, tie_of(k), step, CELL)
    if CELL.halting:
        tl.debug_barrier()  # likewise: the old state is read again, not kept
        before = gl.where(took_step(steps_of, k, layout)[:, None], before, state.load(layout))
    state.store(before)
    s = number_of(before, unscales, CELL)
    if not CELL.exact:  # z0 itself, which a float pair only reconstructs approximately
        # != 0: in Triton 3.9's interpreter, mask & scalar comparison is an int32.
        s = gl.load(start + first + i, mask=(mask & (k == 1)) != 0, other=s)
    s = operand(s, kind)
    other = other_grad.load(layout)
    if CELL.halting:
        keep = gl.where(took_step(steps_of, k, layout), keep, 1.0)[:, None]
    other_grad.store(keep * grad)
    other = multiply(factor, w, other, True, kind, layout)
    write_factor(read, s, kind)
    return other, of_w, weight
