"""The passes of a backward step in one launch: `steps` programs invert, then come the adjoint's.

Bytes per element are those of the two (``device/half_step.py``).
"""

# A jitted function has a type that only the compiler calls: pyright takes each call for an error.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from ..device.half_step import STEP, adjoint, exact_step, half_step
from .half_step import at, find


@triton.jit(do_not_specialize=["steps", "keep", "beta", "scale", "seed_beta", "after"])
def pass_kernel(
    state,
    f,
    cast,
    numel,
    steps,
    keep,
    beta,
    grad,
    other,
    vjp,
    seed,
    scale,
    seed_beta,
    after,
    BLOCK: tl.constexpr,
):
    """On float states; for float64 the numbers of a step come as the bits of the double."""
    program = tl.program_id(0)
    if program < steps:
        leaf, part = find(program, numel, BLOCK)
        half_step(
            at(state, leaf),
            at(f, leaf),
            None if cast is None else at(cast, leaf),
            at(numel, leaf),
            part,
            keep,
            beta,
            True,
            BLOCK,
        )
    else:
        leaf, part = find(program - steps, numel, BLOCK)
        adjoint(
            at(grad, leaf),
            None if other is None else at(other, leaf),
            at(vjp, leaf),
            None if seed is None else at(seed, leaf),
            at(numel, leaf),
            part,
            scale,
            seed_beta,
            after,
            BLOCK,
        )


@triton.jit(do_not_specialize=["steps", *STEP, "grad_scale", "seed_beta", "after"])
def exact_pass_kernel(
    state,
    digits,
    f,
    cast,
    numel,
    num_bytes,
    steps,
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
    grad,
    other,
    vjp,
    seed,
    grad_scale,
    seed_beta,
    after,
    FORM: tl.constexpr,
    DIGITS_PER_BYTE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """On exact states."""
    program = tl.program_id(0)
    if program < steps:
        leaf, part = find(program, num_bytes, LANES)
        exact_step(
            at(state, leaf),
            at(digits, leaf),
            None,
            at(f, leaf),
            None if cast is None else at(cast, leaf),
            at(numel, leaf),
            at(num_bytes, leaf),
            part,
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
            True,
            DIGITS_PER_BYTE,
            LANES,
        )
    else:
        leaf, part = find(program - steps, numel, BLOCK)
        adjoint(
            at(grad, leaf),
            None if other is None else at(other, leaf),
            at(vjp, leaf),
            None if seed is None else at(seed, leaf),
            at(numel, leaf),
            part,
            grad_scale,
            seed_beta,
            after,
            BLOCK,
        )
