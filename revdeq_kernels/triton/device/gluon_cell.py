"""What the Gluon kernels of the equilibrium cell do to a tile, and where it lies meanwhile."""

# What only the compiler calls, and what it knows to be constant, pyright takes for errors.
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
"""Numbers of each sum of a product of TF32 that are in registers at once."""

# ---- where things are ------------------------------------------------------------------------


@gluon.constexpr_function
def accumulator(kind, rows, features, warps):
    """The layout of a product: a warpgroup has all rows of its share of the columns.

    For float32 a warp has all of few rows, or its share of both.
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
    """The layout in which W is loaded: 16 bytes a thread."""
    size = 128 // kind.primitive_bitwidth
    return gl.BlockedLayout(
        [1, size], [32 * size // features, features // size], [warps, 1], [1, 0]
    )


@gluon.constexpr_function
def shared(bits):
    """The layout of what is in shared memory."""
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=bits, rank=2)


@gluon.constexpr_function
def factors(kind):
    """The layout of factors in shared memory: as wgmma reads it, or turned within SLICE columns."""
    if kind.is_fp32():
        return gl.SwizzledSharedLayout(vec=4, per_phase=1, max_phase=4, order=[1, 0])
    return shared(kind.primitive_bitwidth)


@gluon.jit
def load_w(w, FEATURES: gl.constexpr):
    """W [out, in], a factor."""
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
    """How half step k breaks ties, as ``composite.tie``."""
    return (k // 2 + k % 2) % 2


@gluon.jit
def of_rows(kind: gl.constexpr, TILE: gl.constexpr, layout: gl.constexpr):
    """A number for each row of a tile, 0, in shared memory: registers are what is short."""
    shape: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    return gl.allocate_shared_memory(kind, [TILE], shape, gl.zeros([TILE], kind, layout))


@gluon.jit
def over_columns(x, kind: gl.constexpr):
    """x, or of every 8th column the one with the largest x: of 16 bits a thread has them all.

    What is kept of 32 numbers then are 4: registers are what is short.
    """
    if INTERPRETED or kind == gl.float32:
        kept = x
    else:
        parts: gl.constexpr = [x.shape[0], x.shape[1] // 64, 8, 8]
        kept = gl.reduce(x.reshape(parts), 2, larger)
    return kept


@gluon.jit
def rows_outside(reached, layout: gl.constexpr):
    """1 for each row with a number that was not inside RANGE, of what ``over_columns`` kept."""
    outside = outside_range(reached).to(gl.int32)
    for _ in gl.static_range(len(reached.shape) - 1):
        outside = gl.max(outside, 1)
    return gl.convert_layout(outside, layout)


@gluon.jit
def new_factor(kind: gl.constexpr, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """Shared memory of a factor of products; in float32 that of its two parts in TF32."""
    first = gl.allocate_shared_memory(kind, [ROWS, COLUMNS], factors(kind))
    if kind == gl.float32:
        parts = (first, gl.allocate_shared_memory(kind, [ROWS, COLUMNS], factors(kind)))
    else:
        parts = (first,)
    return parts


@gluon.jit
def write_factor(factor, x, kind: gl.constexpr):
    """A factor that ``operand`` made, where products read it; in float32 taken apart, once."""
    if kind == gl.float32:
        high, low = in_two(x)
        factor[0].store(high)
        factor[1].store(low)
    else:
        factor[0].store(x)
    fence(kind)


@gluon.jit
def turned(factor):
    """The same factor, its rows as columns."""
    if len(factor) == 2:
        parts = (factor[0].permute((1, 0)), factor[1].permute((1, 0)))
    else:
        parts = (factor[0].permute((1, 0)),)
    return parts


@gluon.jit
def fence(kind: gl.constexpr):
    """Between stores of factors and wgmma, which reads them past the threads' order."""
    if kind != gl.float32:
        fence_async_shared()


# ---- products --------------------------------------------------------------------------------


@gluon.jit
def multiply(a, b, total, ADD: gl.constexpr, kind: gl.constexpr, layout: gl.constexpr):
    """total, which is 0 unless ADD, + a b, of factors in shared memory.

    By wgmma, or for float32 by three products of TF32: SLICE numbers of each sum at a time, so that
    registers hold both parts of them.
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
    """x as a sum of two TF32, to within 2^-22 of it; of infinity one is NaN."""
    high = to_tf32(x)
    return high, to_tf32(x - high)


@gluon.jit
def to_tf32(x):
    """x rounded to the 11 bits of TF32, ties away from 0; NaN stays, whose bits may overflow."""
    bits = x.to(gl.int32, bitcast=True)
    return gl.where(x == x, ((bits + 0x1000) & -0x2000).to(gl.float32, bitcast=True), x)


@gluon.jit
def took_step(steps_of, k, layout: gl.constexpr):
    """Which rows took the step of half step k: read where it is asked, for want of registers."""
    return k // 2 < steps_of.load(gl.SliceLayout(1, layout))


# ---- half a step ------------------------------------------------------------------------------


@gluon.jit
def before_act(factor, w_t, bias, layout: gl.constexpr):
    """W s + u, of the factor s in shared memory."""
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
    """Half a step back, of `state` by f of the other one, which `read` holds as a factor.

    `grad` is of `state`, `other_grad` holds that of the other one. Then they change places, as the
    next half step needs them, and `read` holds `state`. Returns the gradient of the other one, that
    of W, and the weight that ``load_digits`` keeps.
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
    tl.debug_barrier()  # what is read below is not read early: ptxas would spill for it
    digit = 0
    if CELL.exact:
        digit, weight = load_digits(digits + first, weight, k, last, i, mask, plane, step, CELL)
    before = invert(state.load(layout), f, digit, tie_of(k), step, CELL)
    if CELL.halting:
        tl.debug_barrier()  # again: what the state was is read once more, not kept
        before = gl.where(took_step(steps_of, k, layout)[:, None], before, state.load(layout))
    state.store(before)
    s = number_of(before, unscales, CELL)
    if not CELL.exact:  # the start itself, which a float pair has only nearly come back to
        # != 0: to Triton 3.9's interpreter the & of a mask and a scalar's is an int32.
        s = gl.load(start + first + i, mask=(mask & (k == 1)) != 0, other=s)
    s = operand(s, kind)
    other = other_grad.load(layout)
    if CELL.halting:
        keep = gl.where(took_step(steps_of, k, layout), keep, 1.0)[:, None]
    other_grad.store(keep * grad)
    other = multiply(factor, w, other, True, kind, layout)
    write_factor(read, s, kind)
    return other, of_w, weight
