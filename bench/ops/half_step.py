"""`update_` and `invert_`: one reversible half step on float states.

    update_   state <- (1 - beta) state + beta f
    invert_   state <- (state - beta f) / (1 - beta)

The time of either does not depend on beta. Bytes per element: the state is read and written, f is
read, and the copy in low precision that the next f reads (`cast`) is written where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import revdeq_kernels
from bench.core import providers
from bench.core.case import Case, Plan, Provider, Tensors, binds, elements_of

BETA = 0.5

# (state, f, cast or None, headline); f is float32 or the 16-bit type of a mixed-precision model.
TYPES: tuple[tuple[torch.dtype, torch.dtype, torch.dtype | None, bool], ...] = (
    (torch.float32, torch.float32, None, True),
    (torch.float32, torch.bfloat16, torch.bfloat16, True),
    (torch.float64, torch.bfloat16, torch.bfloat16, False),
    (torch.bfloat16, torch.bfloat16, None, False),
)


def bytes_moved(elements: int, state: torch.dtype, f: torch.dtype, cast: torch.dtype | None) -> int:
    """Bytes one half step must move."""
    written_copy = 0 if cast is None else cast.itemsize
    return elements * (2 * state.itemsize + f.itemsize + written_copy)


def eager_update(
    state: torch.Tensor, f: torch.Tensor, beta: float, cast: torch.Tensor | None = None
) -> None:
    """The update as a user writes it."""
    state.mul_(1 - beta).add_(f, alpha=beta)
    if cast is not None:
        cast.copy_(state)


def eager_invert(
    state: torch.Tensor, f: torch.Tensor, beta: float, cast: torch.Tensor | None = None
) -> None:
    """The inverse as a user writes it."""
    state.sub_(f, alpha=beta).div_(1 - beta)
    if cast is not None:
        cast.copy_(state)


EAGER: dict[str, Callable[..., None]] = {"update_": eager_update, "invert_": eager_invert}


def lerp_weight(op: str, beta: float) -> float:
    """The weight with which `state.lerp_(f, weight)` is this op."""
    return beta if op == "update_" else -beta / (1 - beta)


def make(
    elements: int,
    *,
    device: torch.device,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype | None],
) -> Tensors:
    """Random state and f in [-1, 1); `cast` holds NaN, so that an element left unwritten shows."""
    state, f, cast = dtypes
    tensors = {
        "state": torch.empty(elements, dtype=state, device=device).uniform_(-1, 1),
        "f": torch.empty(elements, dtype=f, device=device).uniform_(-1, 1),
    }
    if cast is not None:
        tensors["cast"] = torch.full((elements,), torch.nan, dtype=cast, device=device)
    return tensors


def settle(tensors: Tensors) -> None:
    """Start at the fixed point: at beta = 1/2 both ops then keep every bit of the state."""
    tensors["state"].copy_(tensors["f"])


ARGUMENTS = ("state", "f", BETA)


def case_providers(plan: Plan, op: str, with_lerp: bool) -> Iterator[Provider]:
    """What a user can write, then the backends of the project."""
    definition = getattr(revdeq_kernels, op)
    lerp = binds(torch.Tensor.lerp_, "state", "f", lerp_weight(op, BETA))
    fused = providers.alternative("lerp_", lerp, binds(definition, *ARGUMENTS))
    others = (fused,) if with_lerp else ()
    return providers.beside_eager(plan, EAGER[op], definition, ARGUMENTS, *others)


def cases(plan: Plan, size_mb: float) -> Iterator[Case]:
    """Both ops on every row of `TYPES`."""
    for op in EAGER:
        for state, f, cast, headline in TYPES:
            elements = elements_of(size_mb, state)
            roles = {"state": state, "f": f, "cast": cast}
            yield Case(
                benchmark="half_step",
                op=op,
                dtypes={role: dtype for role, dtype in roles.items() if dtype is not None},
                elements=elements,
                bytes=bytes_moved(elements, state, f, cast),
                make=partial(make, device=plan.device, dtypes=(state, f, cast)),
                providers=tuple(case_providers(plan, op, state == f and cast is None)),
                beta=BETA,
                settle=settle,
                headline=headline,
            )
