"""What the equilibrium cell's kernels do to a tile: f, its products, and half steps."""

# Pyright reports every call of a jitted function and every field of a constexpr as an error.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections import namedtuple
from typing import NamedTuple

import triton
import triton.language as tl

from revdeq_kernels import dtypes, exact_numbers

from .activations import activation, inside_act, times_slope
from .cell_state import invert_exact, update_exact
from .exact_step import ExactStep, from_fixed, to_fixed
from .half_step import INTERPRETED, narrow, new_state, widen

TOLERANCE: tl.constexpr = tl.constexpr(dtypes.TOLERANCE["float32"])
EPSILON: tl.constexpr = tl.constexpr(dtypes.EPSILON)
LEFT_RANGE: tl.constexpr = tl.constexpr(exact_numbers.LEFT_RANGE)
LARGEST: tl.constexpr = tl.constexpr(3.4028234663852886e38)


class Cell(NamedTuple):
    """What a kernel is specialized for: its parameter CELL. `overrelaxed` means beta > 1."""

    act: int
    exact: bool
    form: int
    digits_per_byte: int
    overrelaxed: bool
    halting: bool
    features: int
    tile: int


Step = namedtuple("Step", ("keep", "beta", *ExactStep._fields))
"""The numbers of a step: 1 - beta and beta as the adjoint uses them, then those of an exact half
step; `half` is the value for tie 0."""


@triton.jit
def host_int(number):
    """`number` in a form that range accepts: in the interpreter, numbers are arrays, not indices.

    Must be returned directly, because the interpreter turns any named value into an array.
    """
    if INTERPRETED:
        return number.handle.data.item()
    return number


# ---- f ---------------------------------------------------------------------------------------


@triton.jit
def operand(x, dtype: tl.constexpr):
    """x rounded to W's dtype; float32 again in the interpreter, which would multiply raw bits."""
    if INTERPRETED:
        y = widen(narrow(x, dtype))
    else:
        y = hide_from_compiler(x.to(tl.float32)).to(dtype)
    return y


@triton.jit
def hide_from_compiler(x):
    """x, passed through a no-op in assembly that hides how it was computed.

    Triton chooses the order of summation of a product by the narrowest type from which a factor was
    computed. In the backward pass this would be the type of the digits, and an exact state would
    not be reconstructed.
    """
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=False, pack=1
    )


@triton.jit
def evaluate(read, w_t, u, CELL: tl.constexpr):
    """x = W s + u, e = inside_act(x), and f(s); `read` is s as returned by ``operand``."""
    x = tl.dot(read, w_t, input_precision="tf32x3") + widen(u)
    e = inside_act(x, CELL)
    return x, e, activation(x, e, CELL)


@triton.jit
def number_of(state, unscale, CELL: tl.constexpr):
    """The value that a state represents."""
    if CELL.exact:
        s = from_fixed(state, unscale)
    else:
        s = state
    return s


@triton.jit
def unscale_of(inside, unscale, kind: tl.constexpr, CELL: tl.constexpr):
    """The step's unscale in the backward pass; 0 for rows beyond the end, so that f reads 0 there.

    Such rows have no digits, so their exact states become arbitrary: in float16 possibly infinite,
    and 0 * inf would put NaN into the gradient of W. If rows may halt, these rows never move. In
    float32, the states stay below 2^31, far from infinity, so registers are saved.
    """
    if CELL.exact and not CELL.halting and kind != tl.float32:
        unscales = tl.where(inside, unscale, 0.0)[:, None]
    else:
        unscales = unscale
    return unscales


# ---- the pair --------------------------------------------------------------------------------


@triton.jit
def update(state, f, packed, tie, step, CELL: tl.constexpr):
    """A half step forward; for an exact state see ``update_exact``."""
    if CELL.exact:
        new, packed, magnitude = update_exact(state, f, packed, tie, step, CELL)
    else:
        new, magnitude = new_state(state, f, step.keep, step.beta, False), f
    return new, packed, magnitude


@triton.jit
def invert(state, f, top, tie, step, CELL: tl.constexpr):
    """A half step in reverse; for an exact state, its digit is the highest digit of `top`."""
    if CELL.exact:
        new = invert_exact(state, f, top, tie, step, CELL)
    else:
        new = new_state(state, f, step.keep, step.beta, True)
    return new


# ---- rows that halt --------------------------------------------------------------------------


@triton.jit
def unjudged(inside):
    """The initial residuals of a tile: its rows move, except rows beyond the end."""
    return tl.where(inside, float("inf"), 0.0)


@triton.jit
def moves(residual, tol):
    """Which rows move, given their last residuals; NaN does not halt a row."""
    return (residual < tol) == 0


@triton.jit
def judge(y, f, taken, residual, tol):
    """The updated number of steps and last residual of each row."""
    far, size = tl.sum((y - f) * (y - f), 1), tl.sum(f * f, 1)
    ratio = tl.sqrt(far) / (EPSILON + tl.sqrt(size))
    ratio = tl.where(size < float("inf"), ratio, float("nan"))  # not 0 if squares overflow
    moving = moves(residual, tol)
    return taken + moving.to(tl.int32), tl.where(moving, ratio, residual)


@triton.jit
def some(rows):
    """Whether any row is set."""
    return tl.max(rows.to(tl.int32), 0) > 0


@triton.jit
def of_moving(moving, new, old, CELL: tl.constexpr):
    """`new` for rows that move, `old` for the others."""
    if CELL.halting:
        new = tl.where(moving[:, None], new, old)
    return new


@triton.jit
def for_rows(moving, number, halted: tl.constexpr, CELL: tl.constexpr):
    """`number` for rows that move, `halted` for the others, which leaves them unchanged."""
    if CELL.halting:
        number = tl.where(moving, number, halted)[:, None]
    return number


# ---- the adjoint -----------------------------------------------------------------------------


@triton.jit
def products(
    read,
    grad,
    w_t,
    bias,
    beta,
    grad_w,
    kind: tl.constexpr,
    CELL: tl.constexpr,
):
    """f, its adjoint g for the gradient of the state that f updated, g rounded, and grad_w."""
    x, e, f = evaluate(read, w_t, bias, CELL)
    g = times_slope(beta * grad, x, e, f, CELL)
    factor = operand(g, kind)
    grad_w = tl.dot(tl.trans(factor), read, acc=grad_w, input_precision="tf32x3")
    return f, g, factor, grad_w


# ---- initial and final state -----------------------------------------------------------------


@triton.jit
def store_ends(y, z, outside, y_out, z_out, fixed, plane, i, mask, step, CELL: tl.constexpr):
    """Store the final state; an exact one also as numbers, NaN in rows that left its range."""
    if CELL.exact:
        outside = (outside > 0)[:, None]
        tl.store(fixed + i, tl.where(outside, LEFT_RANGE, y), mask=mask)
        tl.store(fixed + plane + i, tl.where(outside, LEFT_RANGE, z), mask=mask)
        y = tl.where(outside, float("nan"), from_fixed(y, step.unscale))
        z = tl.where(outside, float("nan"), from_fixed(z, step.unscale))
    tl.store(y_out + i, y, mask=mask)
    tl.store(z_out + i, z, mask=mask)


@triton.jit
def from_start(y, z, start, end, inside, step, CELL: tl.constexpr):
    """The distance of each reconstructed row from z0, and whether its gradient is wrong.

    `end` is the largest magnitude of each row's final state; for an exact state, its final z, read
    again to save registers. Rows that are not finite, or that left their range, are infinitely far,
    and the bound is always finite.
    """
    if CELL.exact:
        fixed, _ = to_fixed(start, step.scale)
        far_y, far_z = tl.abs((y - fixed).to(tl.float32)), tl.abs((z - fixed).to(tl.float32))
        far = tl.where(end == LEFT_RANGE, float("inf"), tl.maximum(far_y, far_z))
        apart = tl.max(far, 1) * step.unscale
        bound = 0.0
    else:
        apart = tl.maximum(largest(y - start), largest(z - start))
        bound = tl.minimum(tl.maximum(end, largest(start)) * TOLERANCE, LARGEST)
    return tl.where(inside, apart, 0.0), ((apart <= bound) == 0) & inside


@triton.jit
def largest(x):
    """The largest magnitude of each row; NaN counts as infinite."""
    return tl.max(tl.where(x == x, tl.abs(x), float("inf")), 1)
