"""The ways to differentiate a solve that are compared: `solve` in its forms, and a plain loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bench.solver.models import Model
from torch_revdeq import Solution, Stats, solve

State = Literal["exact"] | torch.dtype
Adjoint = Literal["reversible", "backprop", "checkpoint"]


@dataclass(frozen=True)
class Method:
    """One provider. `state` and `adjoint` are those of `solve`; None for the loop without it.

    `f` is the dtype that the map computes in.
    """

    name: str
    state: State | None = None
    adjoint: Adjoint | None = None
    f: torch.dtype = torch.float32

    @property
    def kind(self) -> Literal["alternative", "revdeq"]:
        """As in the other benchmarks: the project's own, or what a user writes without it."""
        return "alternative" if self.adjoint is None else "revdeq"

    @property
    def reconstructs(self) -> bool:
        """Whether the backward pass loses precision on its way."""
        return self.adjoint == "reversible" and self.state != "exact"


LOOP = Method("lerp loop")

COST = (
    LOOP,
    Method("backprop exact", "exact", "backprop"),
    Method("checkpoint exact", "exact", "checkpoint"),
    Method("reversible exact", "exact", "reversible"),
    Method("reversible float32", torch.float32, "reversible"),
    Method("reversible float64", torch.float64, "reversible"),
)
"""Those whose time and memory are measured."""

ERROR = (
    Method("exact", "exact", "reversible"),
    Method("float32", torch.float32, "reversible"),
    Method("float64", torch.float64, "reversible"),
    Method("exact, f bfloat16", "exact", "reversible", torch.bfloat16),
    Method("bfloat16", torch.bfloat16, "reversible", torch.bfloat16),
)
"""Formats of the state, of which the error is measured. A bfloat16 state takes no wider f."""


@dataclass(frozen=True)
class Run:
    """A method on a model, to a depth: `gradients` is the call that is timed.

    `check` is that of `solve`: True as a user has it; infinity where the states come back so far
    from their start that True raises; False where not even a number is left of them.
    """

    method: Method
    model: Model
    beta: float
    steps: int
    check: bool | float = True

    def forward(self) -> tuple[Tensor, Solution | None]:
        """z at the end, and all there is to know of the solve."""
        model, method = self.model, self.method
        if method.adjoint is None or method.state is None:
            return lerp_loop(model, self.beta, self.steps), None
        solution = solve(
            model.f,
            model.z0,
            model.x,
            beta=self.beta,
            max_steps=self.steps,
            state=method.state,
            adjoint=method.adjoint,
            check=self.check,
        )
        return solution.z, solution

    def gradients(self) -> Sequence[Tensor]:
        """Forward and backward: the gradients of the parameters."""
        z, _ = self.forward()
        return torch.autograd.grad(z, self.model.parameters, self.model.cotangent)

    def gradients_and_stats(self) -> tuple[Sequence[Tensor], Stats | None]:
        """The same, with the outcome of the check; ReconstructionError where it failed."""
        z, solution = self.forward()
        grads = torch.autograd.grad(z, self.model.parameters, self.model.cotangent)
        if solution is None:
            return grads, None
        solution.verify()
        return grads, solution.stats


def lerp_loop(model: Model, beta: float, steps: int) -> Tensor:
    """The pair update as one writes it, differentiated by autograd with all activations stored."""
    y = z = model.z0
    for _ in range(steps):
        y = torch.lerp(y, model.f(z, model.x), beta)
        z = torch.lerp(z, model.f(y, model.x), beta)
    return z


def reference_gradients(model: Model, beta: float, steps: int) -> Sequence[Tensor]:
    """The gradient of the same solve in float64, with all activations stored."""
    stored = Method("reference", torch.float64, "backprop", torch.float64)
    return Run(stored, model.to(torch.float64), beta, steps).gradients()
