"""The equilibrium cell in Gluon: with the warpgroup instructions of sm_90, or in float32.

    f(s) = act(W s + u)           y <- (1-b) y + b f(z)     z <- (1-b) z + b f(y)

The interface, memory traffic and arithmetic are those of ``cell.py`` here and in ``triton/device``;
only the placement of data differs (``device/gluon_cell.py``). A program loads W into shared memory
once. Both factors of every product are read from shared memory (wgmma), and sums are in registers,
as are the gradient of W and the gradient of the state that a half step changes; the states wait in
shared memory. A tile has 64 rows, the minimum for the instruction.

With W in float32, a product is the sum of three TF32 products, as in ``cell.py``, with the
instructions of sm_80, for which 16 rows are enough. A factor is split into its two TF32 parts once,
when it is written to shared memory. Triton would split it on every read, and keep W, or several
copies of it, in registers. Products read slices of both factors, so that 128 features fit.

256 features are not supported. W (128 KiB), y, z and their adjoints (256 KiB for 64 rows), two
factors and a product (128 KiB) would need 512 KiB in the backward pass, even without the gradient
of W; a multiprocessor has 483 KiB of registers and shared memory.
"""

# Pyright reports calls of jitted functions and uses of constants as errors.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..device.activations import activation, inside_act
from ..device.cell import (
    Step,
    from_start,
    host_int,
    judge,
    largest,
    moves,
    number_of,
    operand,
    some,
    store_ends,
    unjudged,
    unscale_of,
    update,
)
from ..device.cell_state import larger, store_digits
from ..device.exact_step import nearest
from ..device.gluon_cell import (
    accumulator,
    adjoint,
    before_act,
    factors,
    load_w,
    new_factor,
    of_rows,
    over_columns,
    rows_outside,
    shared,
    tie_of,
    turned,
    write_factor,
)
from ..device.half_step import narrow
from .configuration import Configuration

_OF_16_BITS = {
    64: Configuration(64, 4, exact=(2, 2), float32=(3, 2)),
    128: Configuration(64, 8, exact=(1, 1), float32=(1, 1)),
}

_OF_FLOAT32 = {
    64: Configuration(16, 8, exact=(3, 2), float32=(3, 2)),
    128: Configuration(16, 16, exact=(1, 1), float32=(1, 1)),
}

CONFIGURATIONS = {"bf16": _OF_16_BITS, "fp16": _OF_16_BITS, "fp32": _OF_FLOAT32}
"""By dtype of W and number of features. With 128 features, two warpgroups share the columns,
because the gradient of W takes a quarter of a multiprocessor's registers. With 64, several programs
share the multiprocessor, so that one can multiply while another applies act. In float32, the
backward pass takes 202 KiB of shared memory."""

# ---- forward ---------------------------------------------------------------------------------


@gluon.jit(do_not_specialize=["rows", "steps", *Step._fields])
def forward_kernel(
    inputs,
    out,
    rows,
    steps,
    tol,
    keep,
    beta,
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
    CELL: gl.constexpr,
):
    """All steps of this program's tiles.

    `inputs` and `out` are those of the op, as passed by launch/cell.py: fixed, digits and flag are
    None for float32; taken and residual are None if no row halts.
    """
    u, w, z0 = inputs
    TILE: gl.constexpr = CELL.tile
    FEATURES: gl.constexpr = CELL.features
    y_out, z_out, fixed, digits, flag, taken, residual = out
    step = Step(
        *(keep, beta, scale, unscale, negate, base, log2_base),
        *(inverse, reciprocal, q_whole, q_part, half),
    )
    kind: gl.constexpr = w.dtype.element_ty
    layout: gl.constexpr = accumulator(kind, TILE, FEATURES, gl.num_warps())
    row = gl.arange(0, TILE, gl.SliceLayout(1, layout))
    column = gl.arange(0, FEATURES, gl.SliceLayout(0, layout))
    i = row[:, None] * FEATURES + column[None, :]
    w_t = turned(load_w(w, FEATURES))
    bias = gl.allocate_shared_memory(kind, [TILE, FEATURES], factors(kind))
    factor = new_factor(kind, TILE, FEATURES)
    number: gl.constexpr = gl.int32 if CELL.exact else gl.float32
    states = gl.allocate_shared_memory(number, [2, TILE, FEATURES], shared(32))
    by_row: gl.constexpr = gl.SliceLayout(1, layout)
    taken_of = of_rows(gl.int32, TILE, by_row)
    apart_of = of_rows(gl.float32, TILE, by_row)
    plane = rows.to(gl.int64) * FEATURES
    zero = plane * 0
    left_range = gl.program_id(0) * 0
    begin, end, by = gl.program_id(0), gl.cdiv(rows, TILE), gl.num_programs(0)
    for tile in tl.range(host_int(begin), host_int(end), host_int(by), disable_licm=True):
        first = (zero + tile) * (TILE * FEATURES)
        inside = row < rows - tile * TILE
        mask, last = inside[:, None], 2 * steps - 1
        bias.store(gl.load(u + first + i, mask=mask, other=0.0))
        z = gl.load(z0 + first + i, mask=mask, other=0.0)
        reached = over_columns(gl.zeros([TILE, FEATURES], gl.float32, layout), kind)
        packed = gl.zeros([TILE, FEATURES], gl.int32, layout)
        if CELL.exact:
            reached = over_columns(gl.abs(z * scale), kind)
            z = nearest(z * scale)
        states.index(0).store(z)
        states.index(1).store(z)
        write_factor(factor, operand(number_of(z, step.unscale, CELL), kind), kind)
        if CELL.halting:
            taken_of.store(inside.to(gl.int32) * 0)
            apart_of.store(unjudged(inside))
        for k in tl.range(2 * host_int(steps), disable_licm=True):
            go = k <= last if CELL.halting else True
            if go:
                state = states.index(k % 2)
                x = before_act(factor, w_t, bias, layout)
                f = activation(x, inside_act(x, CELL), CELL)
                if CELL.halting:
                    apart = apart_of.load(by_row)
                    moving = moves(apart, tol)
                    if k % 2 == 1:
                        y = number_of(states.index(0).load(layout), step.unscale, CELL)
                        took, apart = judge(y, f, taken_of.load(by_row), apart, tol)
                        taken_of.store(took)
                        apart_of.store(apart)
                        last = gl.where(some(moves(apart, tol)), last, k)
                old = state.load(layout)
                new, packed, magnitude = update(old, f, packed, tie_of(k), step, CELL)
                reached = larger(reached, over_columns(magnitude, kind))
                if CELL.halting:
                    new = gl.where(moving[:, None], new, old)
                state.store(new)
                write_factor(factor, operand(number_of(new, step.unscale, CELL), kind), kind)
                if CELL.exact:
                    packed = store_digits(digits + first, packed, k, last, i, mask, plane, CELL)
        y, z = states.index(0).load(layout), states.index(1).load(layout)
        outside = rows_outside(reached, by_row)
        store_ends(y, z, outside, y_out, z_out, fixed, plane, first + i, mask, step, CELL)
        if CELL.halting:
            gl.store(taken + tile * TILE + row, taken_of.load(by_row), mask=inside)
            gl.store(residual + tile * TILE + row, apart_of.load(by_row), mask=inside)
        left_range = gl.maximum(left_range, gl.max(gl.where(inside, outside, 0), 0))
    if CELL.exact:
        gl.atomic_or(flag, left_range, mask=left_range != 0)


# ---- back ------------------------------------------------------------------------------------


@gluon.jit(do_not_specialize=["rows", "steps", *Step._fields])
def backward_kernel(
    ends,
    inputs,
    grads,
    of_programs,
    rows,
    steps,
    keep,
    beta,
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
    CELL: gl.constexpr,
):
    """The backward pass of this program's tiles, and its part of the gradient of W.

    `ends` and `inputs` are those of the op: digits is None for float32, taken is None if all rows
    took all steps. The program's sums go to grads_w [programs, FEATURES, FEATURES], and to
    distances and losses [programs].
    """
    grad_y, grad_z, y_end, z_end, digits, taken = ends
    u, w, z0 = inputs
    TILE: gl.constexpr = CELL.tile
    FEATURES: gl.constexpr = CELL.features
    grad_u, grad_z0 = grads
    grads_w, distances, losses = of_programs
    step = Step(
        *(keep, beta, scale, unscale, negate, base, log2_base),
        *(inverse, reciprocal, q_whole, q_part, half),
    )
    kind: gl.constexpr = w.dtype.element_ty
    layout: gl.constexpr = accumulator(kind, TILE, FEATURES, gl.num_warps())
    w_layout: gl.constexpr = accumulator(kind, FEATURES, FEATURES, gl.num_warps())
    row = gl.arange(0, TILE, gl.SliceLayout(1, layout))
    column = gl.arange(0, FEATURES, gl.SliceLayout(0, layout))
    i = row[:, None] * FEATURES + column[None, :]
    weights = load_w(w, FEATURES)
    bias = gl.allocate_shared_memory(kind, [TILE, FEATURES], factors(kind))
    read = new_factor(kind, TILE, FEATURES)
    factor = new_factor(kind, TILE, FEATURES)
    grads_u = gl.allocate_shared_memory(gl.float32, [TILE, FEATURES], shared(32))
    number: gl.constexpr = z_end.dtype.element_ty
    states = gl.allocate_shared_memory(number, [2, TILE, FEATURES], shared(32))
    its_grad = gl.allocate_shared_memory(gl.float32, [TILE, FEATURES], shared(32))
    buffers = (weights, bias, factor, grads_u)
    plane = rows.to(gl.int64) * FEATURES
    zero = plane * 0
    of_w = gl.zeros([FEATURES, FEATURES], gl.float32, w_layout)
    by_row: gl.constexpr = gl.SliceLayout(1, layout)
    sizes = of_rows(gl.float32, TILE, by_row)
    distances_of = of_rows(gl.float32, TILE, by_row)
    lost_of = of_rows(gl.int32, TILE, by_row)
    steps_of = of_rows(gl.int32, TILE, by_row)
    begin, end, by = gl.program_id(0), gl.cdiv(rows, TILE), gl.num_programs(0)
    for tile in tl.range(host_int(begin), host_int(end), host_int(by), disable_licm=True):
        first = (zero + tile) * (TILE * FEATURES)
        inside = row < rows - tile * TILE
        unscales = unscale_of(inside, unscale, kind, CELL)
        mask, most = inside[:, None], steps
        if CELL.halting:
            took = gl.load(taken + tile * TILE + row, mask=inside, other=0)
            steps_of.store(took)
            most = gl.minimum(gl.max(took, 0), steps)
        last = 2 * most - 1
        bias.store(gl.load(u + first + i, mask=mask, other=0.0))
        z = gl.load(z_end + first + i, mask=mask, other=0)
        states.index(1).store(z)
        if not CELL.exact:
            sizes.store(largest(z))
        y = gl.load(y_end + first + i, mask=mask, other=0)
        states.index(0).store(y)
        if not CELL.exact:
            sizes.store(gl.maximum(sizes.load(by_row), largest(y)))
        write_factor(read, operand(number_of(y, unscales, CELL), kind), kind)
        its_grad.store(gl.load(grad_y + first + i, mask=mask, other=0.0))
        grads_u.store(gl.zeros([TILE, FEATURES], gl.float32, layout))
        grad = gl.load(grad_z + first + i, mask=mask, other=0.0)
        weight = base * 0 + 1
        place = (first, i, mask, plane, unscales)
        for back in tl.range(2 * host_int(most), disable_licm=True):
            k = last - back
            grad, of_w, weight = adjoint(
                *(states.index(k % 2), read, grad, its_grad, digits, weight, k, last, of_w),
                *(buffers, place, step, z0, steps_of),
                *(layout, w_layout, CELL),
            )
        its_grad.store(grad + its_grad.load(layout))
        y, z = states.index(0).load(layout), states.index(1).load(layout)
        start = gl.load(z0 + first + i, mask=mask, other=0.0)
        if CELL.exact:
            end_of = gl.load(z_end + first + i, mask=mask, other=0)
        else:
            end_of = sizes.load(by_row)
        apart, wrong = from_start(y, z, start, end_of, inside, step, CELL)
        distances_of.store(gl.maximum(distances_of.load(by_row), apart))
        lost_of.store(lost_of.load(by_row) + wrong.to(gl.int32))
        nan = gl.where(wrong, float("nan"), 0.0)[:, None]
        of_u = narrow(grads_u.load(layout) + nan, u.dtype.element_ty)
        gl.store(grad_u + first + i, of_u, mask=mask)
        gl.store(grad_z0 + first + i, its_grad.load(layout) + nan, mask=mask)
    lost = gl.sum(lost_of.load(by_row), 0)
    of_w += gl.where(lost > 0, float("nan"), 0.0)
    here = grads_w + gl.program_id(0) * FEATURES * FEATURES
    out = gl.arange(0, FEATURES, gl.SliceLayout(1, w_layout))
    into = gl.arange(0, FEATURES, gl.SliceLayout(0, w_layout))
    gl.store(here + out[:, None] * FEATURES + into[None, :], of_w)
    gl.store(distances + gl.program_id(0), gl.max(distances_of.load(by_row), 0))
    gl.store(losses + gl.program_id(0), lost)
