"""The equilibrium cell in Triton: all steps in one launch, and the backward pass in another.

    f(s) = act(W s + u)           y <- (1-b) y + b f(z)     z <- (1-b) z + b f(y)

A program loads W once and loops over tiles of TILE rows; a tile's states stay in registers for all
of its steps. ``ops/cell/reference.py`` defines the arithmetic, but not the order of summation, so
this kernel has float32 tolerances (``tests/cell/tolerances.py``). With W in float32, a product is
the sum of three TF32 products (tf32x3), which together are as accurate as float32.

An exact state is reconstructed only if the backward pass evaluates f to the same bits. Therefore
both kernels call ``evaluate`` with the same shapes, number of warps and order of summation, and
without fused multiply-adds; ``launch/cell.py`` checks this on each device before first use.

Bytes per element, each read or written once, with 16-bit u and G digits per byte:
  forward   u 2, z0 4, y and z 8; an exact state 8 more, and 2 steps / G of digits
  backward  u 2, z0 4, y and z 8, their gradients 8, grad_u 2, grad_z0 4; 2 steps / G of digits
In addition, each program of the backward pass writes a matrix of d^2 floats; ``sum_programs`` adds
these up in the order of the programs.
"""

# Pyright reports every call of a jitted function and every field of a constexpr as an error.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from ..device.cell import (
    Step,
    evaluate,
    for_rows,
    from_start,
    host_int,
    invert,
    judge,
    largest,
    moves,
    number_of,
    of_moving,
    operand,
    products,
    some,
    store_ends,
    unjudged,
    unscale_of,
    update,
)
from ..device.cell_state import larger, load_digits, outside_range, store_digits
from ..device.exact_step import nearest
from ..device.half_step import narrow
from .configuration import Configuration

SUM_BLOCK: tl.constexpr = tl.constexpr(1024)


_OF_16_BITS = {
    32: Configuration(16, 4, exact=(5, 3), float32=(7, 4)),
    64: Configuration(16, 4, exact=(3, 2), float32=(4, 2)),
    128: Configuration(16, 8, exact=(1, 1), float32=(1, 1)),
}

_OF_FLOAT32 = {
    32: Configuration(16, 8, exact=(2, 1), float32=(2, 1)),
    64: Configuration(16, 8, exact=(1, 1), float32=(2, 1)),
}

CONFIGURATIONS = {"bf16": _OF_16_BITS, "fp16": _OF_16_BITS, "fp32": _OF_FLOAT32}
"""By dtype of W and number of features: configurations that fit into registers without spilling on
the architectures of tools/aot/cell.py, as tools/aot/compile.py asserts. 128 features in float32 are
left to ``gluon_cell.py``: here they would take 416 KiB of shared memory (227 are available) or, as
blocks of 64, 280 KiB and 1.2 KiB of spills per thread with Triton 3.6 (48 KiB and 3.3 KiB with
3.9). With 256 features, the gradient of W alone (256 KiB) fills a multiprocessor's registers."""


@triton.jit(do_not_specialize=["rows", "steps", *Step._fields])
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
    CELL: tl.constexpr,
):
    """All steps of this program's tiles.

    `inputs` and `out` are those of the op, as passed by launch/cell.py: fixed, digits and flag are
    None for float32; taken and residual are None if no row halts.
    """
    u, w, z0 = inputs
    TILE: tl.constexpr = CELL.tile
    FEATURES: tl.constexpr = CELL.features
    y_out, z_out, fixed, digits, flag, taken, residual = out
    step = Step(
        *(keep, beta, scale, unscale, negate, base, log2_base),
        *(inverse, reciprocal, q_whole, q_part, half),
    )
    row, column = tl.arange(0, TILE), tl.arange(0, FEATURES)
    i = row[:, None] * FEATURES + column[None, :]
    kind: tl.constexpr = w.dtype.element_ty
    w_t = operand(tl.load(w + column[None, :] * FEATURES + column[:, None]), kind)
    plane = rows.to(tl.int64) * FEATURES
    zero = plane * 0
    left_range = tl.program_id(0) * 0
    begin, end, by = tl.program_id(0), tl.cdiv(rows, TILE), tl.num_programs(0)
    for tile in tl.range(host_int(begin), host_int(end), host_int(by), disable_licm=True):
        first = (zero + tile) * (TILE * FEATURES)
        inside = row < rows - tile * TILE
        mask, last = inside[:, None], 2 * steps - 1
        bias = tl.load(u + first + i, mask=mask, other=0.0)
        z = tl.load(z0 + first + i, mask=mask, other=0.0)
        reached = tl.zeros([TILE, FEATURES], tl.float32)
        packed = tl.zeros([TILE, FEATURES], tl.int32)
        if CELL.exact:
            reached = tl.abs(z * scale)
            z = nearest(z * scale)
        y = z
        took, apart = inside.to(tl.int32) * 0, unjudged(inside)
        for n in tl.range(host_int(steps), disable_licm=True):
            go = 2 * n < last if CELL.halting else True
            if go:
                moving = moves(apart, tol)
                read = operand(number_of(z, step.unscale, CELL), kind)
                _, _, f = evaluate(read, w_t, bias, CELL)
                new, packed, magnitude = update(y, f, packed, n % 2, step, CELL)
                reached = larger(reached, magnitude)
                y = of_moving(moving, new, y, CELL)
                if CELL.exact:
                    packed = store_digits(digits + first, packed, 2 * n, last, i, mask, plane, CELL)
                s = number_of(y, step.unscale, CELL)
                read = operand(s, kind)
                _, _, f = evaluate(read, w_t, bias, CELL)
                new, packed, magnitude = update(z, f, packed, (n + 1) % 2, step, CELL)
                reached = larger(reached, magnitude)
                z = of_moving(moving, new, z, CELL)
                if CELL.halting:
                    took, apart = judge(s, f, took, apart, tol)
                    last = tl.where(some(moves(apart, tol)), last, 2 * n + 1)
                if CELL.exact:
                    packed = store_digits(
                        digits + first, packed, 2 * n + 1, last, i, mask, plane, CELL
                    )
        outside = tl.max(outside_range(reached).to(tl.int32), 1)
        store_ends(y, z, outside, y_out, z_out, fixed, plane, first + i, mask, step, CELL)
        if CELL.halting:
            tl.store(taken + tile * TILE + row, took, mask=inside)
            tl.store(residual + tile * TILE + row, apart, mask=inside)
        left_range = tl.maximum(left_range, tl.max(tl.where(inside, outside, 0), 0))
    if CELL.exact:
        tl.atomic_or(flag, left_range, mask=left_range != 0)


@triton.jit(do_not_specialize=["rows", "steps", *Step._fields])
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
    CELL: tl.constexpr,
):
    """The backward pass of this program's tiles, and its part of the gradient of W.

    `ends` and `inputs` are those of the op: digits is None for float32, taken is None if all rows
    took all steps. The program's sums go to grads_w [programs, FEATURES, FEATURES], and to
    distances and losses [programs].
    """
    grad_y, grad_z, y_end, z_end, digits, taken = ends
    u, w, z0 = inputs
    TILE: tl.constexpr = CELL.tile
    FEATURES: tl.constexpr = CELL.features
    grad_u, grad_z0 = grads
    grads_w, distances, losses = of_programs
    step = Step(
        *(keep, beta, scale, unscale, negate, base, log2_base),
        *(inverse, reciprocal, q_whole, q_part, half),
    )
    row, column = tl.arange(0, TILE), tl.arange(0, FEATURES)
    i = row[:, None] * FEATURES + column[None, :]
    kind: tl.constexpr = w.dtype.element_ty
    w_t = operand(tl.load(w + column[None, :] * FEATURES + column[:, None]), kind)
    w_rows = tl.trans(w_t)
    plane = rows.to(tl.int64) * FEATURES
    zero = plane * 0
    of_w = tl.zeros([FEATURES, FEATURES], tl.float32)
    distance = tl.zeros([TILE], tl.float32)
    lost = tl.zeros([TILE], tl.int32)
    begin, end, by = tl.program_id(0), tl.cdiv(rows, TILE), tl.num_programs(0)
    for tile in tl.range(host_int(begin), host_int(end), host_int(by), disable_licm=True):
        first = (zero + tile) * (TILE * FEATURES)
        inside = row < rows - tile * TILE
        unscales = unscale_of(inside, unscale, kind, CELL)
        mask, most, took = inside[:, None], steps, inside.to(tl.int32)
        if CELL.halting:
            took = tl.load(taken + tile * TILE + row, mask=inside, other=0)
            most = tl.minimum(tl.max(took, 0), steps)
        last = 2 * most - 1
        y = tl.load(y_end + first + i, mask=mask, other=0)
        z = tl.load(z_end + first + i, mask=mask, other=0)
        gy = tl.load(grad_y + first + i, mask=mask, other=0.0)
        gz = tl.load(grad_z + first + i, mask=mask, other=0.0)
        gu = tl.zeros([TILE, FEATURES], tl.float32)
        weight = base * 0 + 1
        size = tl.zeros([TILE], tl.float32)
        if not CELL.exact:
            size = tl.maximum(largest(y), largest(z))
        # u and digits are read again in every half step, to save registers.
        for back in tl.range(host_int(most), disable_licm=True):
            n = most - 1 - back
            moving = n < took
            keep_of, beta_of = for_rows(moving, keep, 1.0, CELL), for_rows(moving, beta, 0.0, CELL)
            packed = tl.zeros([TILE, FEATURES], tl.int32)
            if CELL.exact:
                packed, weight = load_digits(
                    digits + first, weight, 2 * n + 1, last, i, mask, plane, step, CELL
                )
            read = operand(number_of(y, unscales, CELL), kind)
            bias = tl.load(u + first + i, mask=mask, other=0.0)
            f, g, factor, of_w = products(read, gz, w_t, bias, beta_of, of_w, kind, CELL)
            gu += g
            gy = tl.dot(factor, w_rows, acc=gy, input_precision="tf32x3")
            gz = keep_of * gz
            new = invert(z, f, packed, (n + 1) % 2, step, CELL)
            z = of_moving(moving, new, z, CELL)
            if CELL.exact:
                packed, weight = load_digits(
                    digits + first, weight, 2 * n, last, i, mask, plane, step, CELL
                )
            s = number_of(z, unscales, CELL)
            if not CELL.exact:  # z0 itself, which a float pair only reconstructs approximately
                # != 0: in Triton 3.9's interpreter, mask & scalar comparison is an int32.
                s = tl.load(z0 + first + i, mask=(mask & (n == 0)) != 0, other=s)
            read = operand(s, kind)
            bias = tl.load(u + first + i, mask=mask, other=0.0)
            f, g, factor, of_w = products(read, gy, w_t, bias, beta_of, of_w, kind, CELL)
            gu += g
            gz = tl.dot(factor, w_rows, acc=gz, input_precision="tf32x3")
            gy = keep_of * gy
            new = invert(y, f, packed, n % 2, step, CELL)
            y = of_moving(moving, new, y, CELL)
        start = tl.load(z0 + first + i, mask=mask, other=0.0)
        end_of = size
        if CELL.exact:
            end_of = tl.load(z_end + first + i, mask=mask, other=0)
        apart, wrong = from_start(y, z, start, end_of, inside, step, CELL)
        distance = tl.maximum(distance, apart)
        lost += wrong.to(tl.int32)
        nan = tl.where(wrong, float("nan"), 0.0)[:, None]
        tl.store(grad_u + first + i, narrow(gu + nan, u.dtype.element_ty), mask=mask)
        tl.store(grad_z0 + first + i, (gz + gy) + nan, mask=mask)
    count = tl.sum(lost, 0)
    of_w += tl.where(count > 0, float("nan"), 0.0)
    here = grads_w + tl.program_id(0) * FEATURES * FEATURES
    tl.store(here + column[:, None] * FEATURES + column[None, :], of_w)
    tl.store(distances + tl.program_id(0), tl.max(distance, 0))
    tl.store(losses + tl.program_id(0), count)


@triton.jit(do_not_specialize=["programs"])
def sum_programs(of_programs, out, programs, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """grad_w [SIZE] <- the sum over the programs, in order; also combines distances and losses."""
    grads_w, distances, losses = of_programs
    grad_w, distance, lost = out
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    far = tl.program_id(0) * 0.0
    count = tl.program_id(0) * 0
    for program in range(host_int(programs)):
        total += tl.load(grads_w + program * SIZE + i, mask=i < SIZE, other=0.0)
        far = tl.maximum(far, tl.load(distances + program))
        count += tl.load(losses + program)
    tl.store(grad_w + i, total, mask=i < SIZE)
    if tl.program_id(0) == 0:
        tl.store(distance, far)
        tl.store(lost, count)
