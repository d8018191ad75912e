"""The passes of a backward step in one launch: `steps` programs invert, the rest run the adjoint.

Bytes per element are the sum of both (``triton/device``). Triton requires a name that is used in
both branches to have one type, so the branches use different names.
"""

# Pyright reports every call of a jitted function as an error.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from ..device.exact_step import ExactStep, exact_step
from ..device.half_step import adjoint, half_step
from .half_step import at, find


@triton.jit(do_not_specialize=["steps", "keep", "beta", "scale", "seed_beta", "after"])
def pass_kernel(
    stepped,
    numel,
    steps,
    keep,
    beta,
    carried,
    scale,
    seed_beta,
    after,
    BLOCK: tl.constexpr,
):
    """On float states; for float64, the numbers of a step are passed as the bits of the double."""
    program = tl.program_id(0)
    if program < steps:
        leaf, part = find(program, numel, BLOCK)
        state = [None if s is None else at(s, leaf) for s in stepped]
        half_step(state, at(numel, leaf), part, (keep, beta), True, BLOCK)
    else:
        leaf, part = find(program - steps, numel, BLOCK)
        gradient = [None if c is None else at(c, leaf) for c in carried]
        adjoint(gradient, at(numel, leaf), part, (scale, seed_beta, after), BLOCK)


@triton.jit(do_not_specialize=["steps", *ExactStep._fields, "grad_scale", "seed_beta", "after"])
def exact_pass_kernel(
    stepped,
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
    half,
    carried,
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
        state = [None if s is None else at(s, leaf) for s in stepped]
        sizes = (at(numel, leaf), at(num_bytes, leaf))
        step = ExactStep(
            scale, unscale, negate, base, log2_base, inverse, reciprocal, q_whole, q_part, half
        )
        exact_step(state, None, *sizes, part, step, FORM, DIGITS_PER_BYTE, LANES)
    else:
        leaf, part = find(program - steps, numel, BLOCK)
        gradient = [None if c is None else at(c, leaf) for c in carried]
        adjoint(gradient, at(numel, leaf), part, (grad_scale, seed_beta, after), BLOCK)
