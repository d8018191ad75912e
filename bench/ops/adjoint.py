"""`adjoint_`: one half step of the backward pass on the carried gradients.

    adjoint_   grad <- scale grad + vjp; seed <- beta grad

Bytes per element: grad is read and written, vjp is read, seed is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import revdeq_kernels
from bench.core import providers
from bench.core.case import Case, Plan, Tensors, elements_of

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


ARGUMENTS = ("grad", "vjp", 1 - BETA, BETA, "seed")


def cases(plan: Plan, size_mb: float) -> Iterator[Case]:
    """The op on every row of `TYPES`."""
    elements = elements_of(size_mb, torch.float32)
    every = providers.beside_eager(plan, eager_adjoint, revdeq_kernels.adjoint_, ARGUMENTS)
    found = tuple(every)
    for f, headline in TYPES:
        yield Case(
            benchmark="adjoint",
            op="adjoint_",
            dtypes={"grad": torch.float32, "vjp": f, "seed": f},
            elements=elements,
            bytes=bytes_moved(elements, f),
            make=partial(make, device=plan.device, f=f),
            providers=found,
            beta=BETA,
            settle=settle,
            headline=headline,
        )
