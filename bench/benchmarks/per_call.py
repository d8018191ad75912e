"""What one call costs when there is nothing to compute: each op on one element, beside `lerp_`.

The backend is the one that a user gets without asking. On a GPU this is the time to issue a call.
No bytes are counted: nothing here is limited by memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import revdeq_kernels
from bench import providers
from bench.benchmarks import adjoint, half_step, half_step_exact, quantize
from bench.case import Bind, Call, Case, Plan, Provider, Tensors

FLOAT_OPS = ("update_", "invert_")
EXACT_OPS = ("update_exact_", "invert_exact_")
FLOAT_TYPES = (torch.float32, torch.float32, None)


def bind_lerp(tensors: Tensors) -> Call:
    """The cheapest call of torch that does a half step."""
    return partial(tensors["lerp_state"].lerp_, tensors["lerp_f"], half_step.BETA)


def bind_lerp_definition(tensors: Tensors) -> Call:
    """What `bind_lerp` computes."""
    function = revdeq_kernels.update_
    return partial(function, tensors["lerp_state"], tensors["lerp_f"], half_step.BETA)


def with_lerp_tensors(tensors: Tensors, device: torch.device) -> Tensors:
    """Add the operands of `lerp_`, which every op is compared with."""
    operands = half_step.make(1, device=device, dtypes=FLOAT_TYPES)
    return tensors | {"lerp_state": operands["state"], "lerp_f": operands["f"]}


def make(elements: int, *, op: str, device: torch.device) -> Tensors:
    """One element of everything."""
    if op in FLOAT_OPS:
        tensors = half_step.make(elements, device=device, dtypes=FLOAT_TYPES)
    elif op in EXACT_OPS:
        tensors = half_step_exact.make(
            elements, op=op, beta=half_step.BETA, device=device, f=torch.float32, cast=None
        )
    elif op == "adjoint_":
        tensors = adjoint.make(elements, device=device, f=torch.float32)
    else:
        tensors = quantize.make(elements, op=op, device=device)
    return with_lerp_tensors(tensors, device)


def bind_op(op: str) -> Bind:
    """Bind the public function."""
    if op in FLOAT_OPS:
        return half_step.bind_call(getattr(revdeq_kernels, op), half_step.BETA)
    if op in EXACT_OPS:
        frac_bits = half_step_exact.FRAC_BITS[torch.float32]
        return half_step_exact.bind_exact(op, half_step.BETA, frac_bits)
    if op == "adjoint_":
        return adjoint.bind_call(revdeq_kernels.adjoint_)
    return quantize.bind_call(getattr(revdeq_kernels, op))


def cases(plan: Plan, size_mb: float) -> Iterator[Case]:
    """Every op; `size_mb` does not matter to one element."""
    for op in (*FLOAT_OPS, "adjoint_", *EXACT_OPS, *quantize.EAGER):
        bind = bind_op(op)
        yield Case(
            benchmark="per_call",
            op=op,
            dtypes={"state": torch.int32 if op in (*EXACT_OPS, *quantize.EAGER) else torch.float32},
            elements=1,
            bytes=None,
            make=partial(make, op=op, device=plan.device),
            providers=(
                providers.alternative("lerp_", bind_lerp, bind_lerp_definition),
                Provider("revdeq", "revdeq", bind, providers.under_reference(bind)),
            ),
            beta=half_step.BETA if op not in quantize.EAGER else None,
        )
