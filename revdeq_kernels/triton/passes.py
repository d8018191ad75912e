"""The passes of a backward step in one launch: the programs of the inverse, then of the adjoint.

Bytes per element are those of the two (``half_step.py``).
"""

# A jitted function has a type that only the compiler calls: pyright takes each call for an error.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from .half_step import STEP, adjoint, exact_step, half_step
from .kernels import leaf_of


@triton.jit(do_not_specialize=["state_end", "end", "keep", "beta", "scale", "seed_beta", "after"])
def pass_kernel(
    state,
    f,
    cast,
    numel,
    state_end,
    keep,
    beta,
    grad,
    other,
    vjp,
    seed,
    end,
    scale,
    seed_beta,
    after,
    BLOCK: tl.constexpr,
):
    """On float states; for float64 the numbers of a step come as the bits of the double."""
    program = tl.program_id(0)
    begin = 0
    for k in tl.static_range(len(state)):
        if (program >= begin) & (program < state_end[k]):
            part = program - begin
            half_step(state[k], f[k], leaf_of(cast, k), numel[k], part, keep, beta, True, BLOCK)
        begin = state_end[k]
    for k in tl.static_range(len(state)):
        if (program >= begin) & (program < end[k]):
            adjoint(
                grad[k],
                leaf_of(other, k),
                vjp[k],
                leaf_of(seed, k),
                numel[k],
                program - begin,
                scale,
                seed_beta,
                after,
                BLOCK,
            )
        begin = end[k]


@triton.jit(do_not_specialize=["state_end", "end", *STEP, "grad_scale", "seed_beta", "after"])
def exact_pass_kernel(
    state,
    digits,
    f,
    cast,
    numel,
    num_bytes,
    state_end,
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
    end,
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
    begin = 0
    for k in tl.static_range(len(state)):
        if (program >= begin) & (program < state_end[k]):
            exact_step(
                state[k],
                digits[k],
                None,
                f[k],
                leaf_of(cast, k),
                numel[k],
                num_bytes[k],
                program - begin,
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
        begin = state_end[k]
    for k in tl.static_range(len(state)):
        if (program >= begin) & (program < end[k]):
            adjoint(
                grad[k],
                leaf_of(other, k),
                vjp[k],
                leaf_of(seed, k),
                numel[k],
                program - begin,
                grad_scale,
                seed_beta,
                after,
                BLOCK,
            )
        begin = end[k]
