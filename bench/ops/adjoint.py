"""`adjoint_`: one half step of the backward pass on the carried gradients.

    adjoint_   grad <- scale grad + vjp; seed <- beta grad

Bytes per element: grad is read and written, vjp is read, seed is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import revdeq_kernels
from bench.core import providers
from bench.core.case import Bind, Call, Case, Plan, Tensors, elements_of

BETA = 0.5

# (dtype of vjp and seed, headline); the gradients are carried in float32.
TYPES = ((torch.bfloat16, True), (torch.float32, False))


def bytes_moved(elements: int, f: torch.dtype) -> int:
    """Bytes one step must move."""
    return elements * (2 * torch.float32.itemsize + 2 * f.itemsize)


def eager_adjoint(
    grad: torch.Tensor, vjp: torch.Tensor, scale: float, beta: float, seed: torch.Tensor
) -> None:
    """The step as a user writes it who knows that `out` saves a pass and a temporary."""
    torch.add(vjp, grad, alpha=scale, out=grad)
    torch.mul(grad, beta, out=seed)


def make(elements: int, *, device: torch.device, f: torch.dtype) -> Tensors:
    """Random gradients; `seed` holds NaN, so that an element left unwritten shows."""
    return {
        "grad": torch.empty(elements, device=device).uniform_(-1, 1),
        "vjp": torch.empty(elements, dtype=f, device=device).uniform_(-1, 1),
        "seed": torch.full((elements,), torch.nan, dtype=f, device=device),
    }


def settle(tensors: Tensors) -> None:
    """Keep vjp away from 0, where grad would halve until it is subnormal."""
    tensors["vjp"].abs_().add_(1)
    tensors["grad"].copy_(tensors["vjp"])


def bind_call(function: Callable[..., object]) -> Bind:
    """Bind `function(grad, vjp, scale, beta, seed)`."""

    def bind(tensors: Tensors) -> Call:
        grad, vjp, seed = (tensors[name] for name in ("grad", "vjp", "seed"))
        return partial(function, grad, vjp, 1 - BETA, BETA, seed)

    return bind


def cases(plan: Plan, size_mb: float) -> Iterator[Case]:
    """The op on every row of `TYPES`."""
    elements = elements_of(size_mb, torch.float32)
    definition = bind_call(revdeq_kernels.adjoint_)
    compiled = bind_call(providers.compiled(eager_adjoint))
    for f, headline in TYPES:
        yield Case(
            benchmark="adjoint",
            op="adjoint_",
            dtypes={"grad": torch.float32, "vjp": f, "seed": f},
            elements=elements,
            bytes=bytes_moved(elements, f),
            make=partial(make, device=plan.device, f=f),
            providers=(
                providers.alternative("eager", bind_call(eager_adjoint), definition),
                providers.alternative("compile", compiled, definition),
                *providers.backend_providers(plan, definition),
            ),
            beta=BETA,
            settle=settle,
            headline=headline,
        )
