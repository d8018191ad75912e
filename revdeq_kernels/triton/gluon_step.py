"""What the Gluon kernels of the equilibrium cell do to a tile, and where it lies meanwhile."""

# What only the compiler calls, and what it knows to be constant, pyright takes for errors.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAssignmentType=false
from __future__ import annotations

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma

from .cell_step import (
    activation,
    inside_act,
    invert,
    load_digits,
    number_of,
    operand,
    slope,
)
from .half_step import widen

# ---- where things are ------------------------------------------------------------------------


@gluon.constexpr_function
def accumulator(features, warps):
    """The layout of a product: a warpgroup has all rows of its share of the columns."""
    share = features // (warps // 4)
    return gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, warps // 4], instr_shape=[16, share, 16]
    )


@gluon.constexpr_function
def rows_of_w(features, warps):
    """The layout in which W is loaded: 16 bytes a thread."""
    return gl.BlockedLayout([1, 8], [256 // features, features // 8], [warps, 1], [1, 0])


@gluon.constexpr_function
def shared(bits):
    """The layout of what is in shared memory, as wgmma reads it."""
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=bits, rank=2)


@gluon.jit
def load_w(w, FEATURES: gl.constexpr):
    """W [out, in], in shared memory."""
    layout: gl.constexpr = rows_of_w(FEATURES, gl.num_warps())
    kind: gl.constexpr = w.dtype.element_ty
    row = gl.arange(0, FEATURES, gl.SliceLayout(1, layout))
    column = gl.arange(0, FEATURES, gl.SliceLayout(0, layout))
    values = gl.load(w + row[:, None] * FEATURES + column[None, :])
    return gl.allocate_shared_memory(kind, [FEATURES, FEATURES], shared(16), values)


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
def write_factor(buffer, x, kind: gl.constexpr, INTERPRETED: gl.constexpr):
    """A factor of products, rounded to W's dtype, where wgmma sees it."""
    buffer.store(operand(x, kind, INTERPRETED))
    fence_async_shared()


@gluon.jit
def took_step(steps_of, k, layout: gl.constexpr):
    """Which rows took the step of half step k: read where it is asked, for want of registers."""
    return k // 2 < steps_of.load(gl.SliceLayout(1, layout))


# ---- half a step ------------------------------------------------------------------------------


@gluon.jit
def before_act(factor, w_t, bias, layout: gl.constexpr):
    """W s + u, of the factor s in shared memory."""
    zero = gl.full(factor.shape, 0.0, gl.float32, layout)
    return warpgroup_mma(factor, w_t, zero, use_acc=False) + widen(bias.load(layout))


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
    unscale,
    start,
    steps_of,
    layout: gl.constexpr,
    ACT: gl.constexpr,
    EXACT: gl.constexpr,
    FORM: gl.constexpr,
    DIGITS_PER_BYTE: gl.constexpr,
    HALT: gl.constexpr,
    INTERPRETED: gl.constexpr,
):
    """Half a step back, of `state` by f of the other one, which `read` holds as a factor.

    `grad` is of `state`, `other_grad` holds that of the other one. Then they change places, as the
    next half step needs them, and `read` holds `state`. Returns the gradient of the other one, that
    of W, and the weight that ``load_digits`` keeps.
    """
    w, bias, factor, grads_u = buffers
    first, i, mask, plane = place
    keep, beta, base = step[0], step[1], step[4]
    if HALT:
        beta = gl.where(took_step(steps_of, k, layout), beta, 0.0)[:, None]
    kind: gl.constexpr = w.dtype
    x = before_act(read, w.permute((1, 0)), bias, layout)
    e = inside_act(x, ACT)
    f = activation(x, e, ACT)
    g = beta * grad * slope(x, e, f, ACT)
    grads_u.store(grads_u.load(layout) + g)
    write_factor(factor, g, kind, INTERPRETED)
    of_w = warpgroup_mma(factor.permute((1, 0)), read, of_w)
    tl.debug_barrier()  # what is read below is not read early: ptxas would spill for it
    digit = 0
    if EXACT:
        digit, weight = load_digits(
            digits + first, weight, base, k, last, i, mask, plane, DIGITS_PER_BYTE
        )
    before = invert(state.load(layout), f, digit, tie_of(k), step, EXACT, FORM)
    if HALT:
        tl.debug_barrier()  # again: what the state was is read once more, not kept
        before = gl.where(took_step(steps_of, k, layout)[:, None], before, state.load(layout))
    state.store(before)
    s = number_of(before, unscale, EXACT)
    if not EXACT:  # the start itself, which a float pair has only nearly come back to
        s = gl.load(start + first + i, mask=mask & (k == 1), other=s)
    s = operand(s, kind, INTERPRETED)
    other = other_grad.load(layout)
    if HALT:
        keep = gl.where(took_step(steps_of, k, layout), keep, 1.0)[:, None]
    other_grad.store(keep * grad)
    other = warpgroup_mma(factor, w, other)
    read.store(s)
    fence_async_shared()
    return other, of_w, weight
