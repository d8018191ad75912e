"""The ways to differentiate a solve that are compared: `solve` in its forms, and a plain loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.core.case import Kind
from bench.solver.models import Model
from torch_revdeq import ReconstructionError, RevDEQ, Solution, Stats, graphed

State = Literal["exact"] | torch.dtype
Adjoint = Literal["reversible", "backprop", "checkpoint", "functional"]
Compiled = Literal["", "f", "whole", "both", "solve"]
# From f, z0, x, beta and the number of steps to z at the end.
Loop = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]


class Skipped(Exception):  # noqa: N818 - no error: what was to be measured is not there
    """A provider needs something that is not installed. Says how to get it."""


@dataclass(frozen=True)
class Method:
    """One provider. `state` and `adjoint` are those of `solve`; None for the loop without it.

    `f` is the dtype that the map computes in. `options` are more of `solve`, of which "all" stands
    for all half steps or steps. `compiled` says what torch.compile is given: f, the whole solve, or
    both one by one; "solve" is the solver's own option. `loop` is what runs where it is not
    `solve`, and `lerp_loop` where there is none; with `jax` it is the authors' library in a process
    of its own (`jax_peer.py`). `graphed` puts a solve into CUDA graphs.
    """

    name: str
    state: State | None = None
    adjoint: Adjoint | None = None
    f: torch.dtype = torch.float32
    options: tuple[tuple[str, Any], ...] = ()
    compiled: Compiled = ""
    loop: Loop | None = None
    jax: bool = False
    graphed: bool = False

    @property
    def kind(self) -> Kind:
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

GRAPHED = Method(
    "exact, CUDA graphs",
    "exact",
    "reversible",
    # What a graph has to know beforehand: it cannot look at the data.
    options=(("frac_bits", 20), ("rng", "none")),
    graphed=True,
)

NEVER = ("tol", 1e-30)
OPTIONS = (
    LOOP,
    Method("lerp loop, compiled", compiled="whole"),
    COST[1],
    COST[3],
    Method("store_last all", "exact", "reversible", options=(("store_last", "all"),)),
    Method("save_at all", "exact", "reversible", options=(("save_at", "all"),)),
    Method("tol, not reached", "exact", "reversible", options=(NEVER,)),
    Method("trace", "exact", "reversible", options=(("trace", True),)),
    Method("tol per sample", "exact", "reversible", options=(NEVER, ("per_sample", True))),
    Method("compile=True", "exact", "reversible", compiled="solve"),
    Method("f compiled", "exact", "reversible", compiled="f"),
    Method("fullgraph, f compiled", "exact", "reversible", compiled="both"),
    Method(
        "fullgraph, functional",
        torch.float32,
        "functional",
        options=(("rng", "none"),),
        compiled="whole",
    ),
    GRAPHED,
)
"""Options of `solve` and what torch.compile makes of it. In "tol" no sample is ever there."""

AROUND_F = ("f", "both", "solve")
"""What torch.compile may be given where the solver takes the half steps."""

ERROR = (
    Method("exact", "exact", "reversible"),
    Method("float32", torch.float32, "reversible"),
    Method("float64", torch.float64, "reversible"),
    Method("exact, f bfloat16", "exact", "reversible", torch.bfloat16),
    Method("bfloat16", torch.bfloat16, "reversible", torch.bfloat16),
)
"""Formats of the state, of which the error is measured. A bfloat16 state takes no wider f."""


COMPILED = (
    LOOP,
    OPTIONS[1],
    COST[3],
    *(method for method in OPTIONS if method.compiled in AROUND_F),
)
"""The loop and the solver, each eager and compiled."""

OVERHEAD = (
    LOOP,
    OPTIONS[1],
    COST[1],
    COST[3],
    COST[4],
    *(method for method in OPTIONS if method.compiled in AROUND_F),
    GRAPHED,
)
"""What a half step costs where f costs nothing."""


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
        run: Callable[..., Any] = solution_of if method.adjoint else method.loop or lerp_loop
        if method.compiled in ("whole", "both"):
            run = compiled(run)
        if method.graphed:
            return self.graph(model.x), None
        if not method.adjoint:
            return run(model.f, model.z0, model.x, self.beta, self.steps), None
        solution = run(self.layer, model.z0, model.x)
        return solution.z, solution

    @cached_property
    def layer(self) -> RevDEQ:
        """The solve; one object, so that it is compiled once."""
        method, f = self.method, self.model.f
        options: dict[str, Any] = {"state": method.state, "adjoint": method.adjoint}
        for name, value in method.options:
            options[name] = value if value != "all" else self._all(name)
        if method.compiled == "solve":
            options["compile"] = True
        return RevDEQ(
            compiled(f) if method.compiled in ("f", "both") else f,
            beta=self.beta,
            max_steps=self.steps,
            check=self.check,
            **options,
        )

    @cached_property
    def graph(self) -> RevDEQ:
        """The layer as two CUDA graphs, which begin at zero, where this benchmark's solves do."""
        device = self.model.x.device
        if device.type != "cuda":
            raise Skipped(f"a CUDA graph needs a GPU, and this run is on {device}")
        return graphed(self.layer, self.model.x)

    def _all(self, name: str) -> int | list[int]:
        return 2 * self.steps if name == "store_last" else list(range(1, self.steps + 1))

    def whole(self) -> Sequence[Tensor]:
        """The call whose memory counts: of a CUDA graph the capture too, which keeps its own."""
        return replace(self).gradients() if self.method.graphed else self.gradients()

    def gradients(self) -> Sequence[Tensor]:
        """Forward and backward: the gradients of the parameters."""
        z, _ = self.forward()
        return torch.autograd.grad(z, self.model.parameters, self.model.cotangent)

    def gradients_and_stats(self) -> tuple[Sequence[Tensor], Stats | None]:
        """The same, with the outcome of the check; ReconstructionError where it failed."""
        z, solution = self.forward()
        grads = torch.autograd.grad(z, self.model.parameters, self.model.cotangent)
        if self.method.graphed:
            stats = self.layer.stats
            assert stats is not None
            stats.verify()
            return grads, stats
        if solution is None:
            return grads, None
        solution.verify()
        return grads, solution.stats

    def settled(self) -> tuple[Run, Sequence[Tensor], Stats | None]:
        """The run with the first check that does not raise, and what it finds.

        True is a user's. Past the precision of a float state it raises; infinity lets every
        distance pass, and False what is no number any more.
        """
        for check in (True, math.inf, False):
            run = replace(self, check=check)
            try:
                return run, *run.gradients_and_stats()
            except ReconstructionError:
                if check is False or not self.method.reconstructs:
                    raise
        raise AssertionError("unreachable: without a check nothing raises ReconstructionError")


def lerp_loop(f: nn.Module, z0: Tensor, x: Tensor, beta: float, steps: int) -> Tensor:
    """The pair update as one writes it, differentiated by autograd with all activations stored."""
    y = z = z0
    for _ in range(steps):
        y = torch.lerp(y, f(z, x), beta)
        z = torch.lerp(z, f(y, x), beta)
    return z


def solution_of(layer: RevDEQ, z0: Tensor, x: Tensor) -> Solution:
    """All that the layer finds."""
    return layer.solve(x, z0=z0)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """By torch.compile, as one graph."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def reference_gradients(model: Model, beta: float, steps: int) -> Sequence[Tensor]:
    """The gradient of the same solve in float64, by autograd.

    With stored states, and f evaluated again: the bits of stored activations, without their memory.
    """
    stored = Method("reference", torch.float64, "checkpoint", torch.float64)
    return Run(stored, model.to(torch.float64), beta, steps).gradients()
