"""The cost of a call with nothing to compute: each op on one element, and `lerp_`.

The backend is the one that a user gets without asking. On a GPU this is the time to issue a call.
No bytes are counted: nothing here is limited by memory. A list holds one leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

import revdeq_kernels
from bench.core import providers
from bench.core.case import Bind, Case, Plan, Provider, Tensors, binds
from bench.ops import adjoint, channels, conversion, exact_step, half_step, lists, passes, residual

BETA = half_step.BETA
FLOAT32, INT32 = torch.float32, torch.int32
FLOAT_TYPES = (FLOAT32, FLOAT32, None)


class Row(NamedTuple):
    """One op: the type of its first tensor, what makes and settles its tensors, and its call."""

    op: str
    dtype: torch.dtype
    make: Callable[[int], Tensors]
    settle: Callable[[Tensors], None]
    bind: Bind
    definition: Bind | None = None
    beta: float | None = BETA


LERP = ("lerp_state", "lerp_f", BETA)
"""The cheapest call of torch that does a half step."""


def make_with_lerp(
    elements: int, *, make: Callable[[int], Tensors], device: torch.device
) -> Tensors:
    """Add the operands of `lerp_`, which every op is compared with."""
    operands = half_step.make(1, device=device, dtypes=FLOAT_TYPES)
    return make(elements) | {"lerp_state": operands["state"], "lerp_f": operands["f"]}


def as_made(tensors: Tensors) -> None:
    """Leave the tensors of ops that change nothing, or no float."""


def rows(device: torch.device) -> Iterator[Row]:
    """Every op on float32 or on an exact state, with f in float32."""
    make: Callable[[int], Tensors] = partial(half_step.make, device=device, dtypes=FLOAT_TYPES)
    for op in half_step.EAGER:
        bind = binds(getattr(revdeq_kernels, op), *half_step.ARGUMENTS)
        yield Row(op, FLOAT32, make, half_step.settle, bind)
    bind, definition = (of(lists.bind_update) for of in (lists.bind_list, lists.bind_loop))
    yield Row("update_.list", FLOAT32, make, half_step.settle, bind, definition)
    make = partial(channels.make, device=device, channels=1, inner=1)
    bind = binds(revdeq_kernels.update_, *channels.ARGUMENTS)
    yield Row("update_.channels", FLOAT32, make, half_step.settle, bind)
    for op in ("update_exact_", "invert_exact_"):
        make = partial(exact_step.make, op=op, beta=BETA, device=device, f=FLOAT32, cast=None)
        bind = exact_step.bind_exact(op, BETA, exact_step.FRAC_BITS[FLOAT32])
        yield Row(op, INT32, make, as_made, bind)
    make = partial(adjoint.make, device=device, f=FLOAT32)
    bind = binds(revdeq_kernels.adjoint_, *adjoint.ARGUMENTS)
    yield Row("adjoint_", FLOAT32, make, adjoint.settle, bind)
    for op in dict.fromkeys(op for op, *_ in passes.ROWS):
        make = partial(passes.make, op=op, beta=BETA, device=device, f=FLOAT32)
        dtype = INT32 if passes.is_exact(op) else FLOAT32
        yield Row(op, dtype, make, passes.settle, passes.bind_op(op, BETA, FLOAT32))
    make = partial(residual.make, device=device, dtype=FLOAT32)
    yield Row("residual", FLOAT32, make, as_made, residual.bind_call, beta=None)
    for op in conversion.EAGER:
        make = partial(conversion.make, op=op, device=device)
        bind = binds(getattr(revdeq_kernels, op), *conversion.ARGUMENTS)
        yield Row(op, INT32, make, as_made, bind, beta=None)


def cases(plan: Plan, size_mb: float) -> Iterator[Case]:
    """Every op; `size_mb` does not matter to one element."""
    lerp, lerp_definition = binds(torch.Tensor.lerp_, *LERP), binds(revdeq_kernels.update_, *LERP)
    for row in rows(plan.device):
        definition = providers.under_reference(row.definition or row.bind)
        yield Case(
            benchmark="per_call",
            op=row.op,
            dtypes={"state": row.dtype},
            elements=1,
            bytes=None,
            make=partial(make_with_lerp, make=row.make, device=plan.device),
            providers=(
                providers.alternative("lerp_", lerp, lerp_definition),
                Provider("revdeq", "revdeq", row.bind, definition),
            ),
            beta=row.beta,
            settle=row.settle,
        )
