"""Backprop through the loop: autograd over the solve, with stored activations.

``adjoint="backprop"`` and ``"checkpoint"``, and second derivatives. A float state is plain
differentiable PyTorch. An exact state is updated by the ops, and the nodes of
``gradient_graph.py`` carry its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from revdeq_kernels.ops.half_step import updated

from ..evaluation.adjoint import MOST, Adjoint
from ..evaluation.auxiliary import collecting
from ..evaluation.marks import NOISE
from ..evaluation.replay import Evaluate
from ..iteration.beta import as_beta
from ..iteration.halting import where_moving
from ..iteration.loop import iterate
from ..iteration.stopping import Stopping
from ..state.pair import Leaves
from .checkpointed_graphs import CheckpointedGraphs, returned_other
from .gradient_graph import GradientGraph, attached, begun, refuse_second_derivative
from .primals import Primals
from .problem import Outputs, Problem
from .vjp import alias

_Run: TypeAlias = tuple[Leaves, Leaves, list[Leaves], Any, int, Leaves]
"""z, y, the saved z, the pair, the number of steps, and aux."""


class Backprop(Adjoint):
    """Stores all activations, as a plain loop does."""

    name = "backprop"
    takes = MOST
    evaluates_once = takes_sharded = takes_transforms = takes_forward_mode = True

    def solve(self, problem: Problem) -> Outputs:
        """See ``solve_backprop``."""
        return solve_backprop(problem, again=False)


class Checkpoint(Backprop):
    """Stores the states, and evaluates f again for its activations."""

    name = "checkpoint"
    evaluates_once = takes_sharded = takes_transforms = takes_forward_mode = False
    fills_saved = True

    def solve(self, problem: Problem) -> Outputs:
        """See ``solve_backprop``."""
        return solve_backprop(problem, again=True)


def solve_backprop(problem: Problem, *, again: bool) -> Outputs:
    """Run a solve that autograd differentiates by itself.

    `again`: activations are not kept, but recomputed when they are needed.
    """
    # A checkpoint restores the buffers for f, so f may read what it writes.
    with problem.evaluation.forward(replayed=again, may_read=True):
        run = _run_float if problem.format.plain else _run_pair
        z, y, saved, pair, steps, aux = run(problem, problem.stopping, again=again)
    stats = problem.stats(pair, steps)
    outputs = [leaf for leaves in (z, y, *saved, aux) for leaf in leaves]
    problem.check_range(pair, stats, [leaf.detach() for leaf in outputs])
    problem.spoil_gradients(pair, outputs)
    return Outputs(z, y, saved, stats, aux)


def _evaluate(problem: Problem, *, again: bool) -> Evaluate:
    """f with its graph."""
    evaluation, tensors = problem.evaluation, problem.tensors

    def stored(k: int, leaves: Sequence[Tensor]) -> list[Tensor]:
        return evaluation(k, leaves, tensors)

    if again:
        checkpointed = CheckpointedGraphs(evaluation, tensors, problem.check).evaluate
        return truncated(checkpointed, stored, problem.first_step)
    return truncated(stored, stored, problem.first_step)


def truncated(differentiated: Evaluate, plain: Evaluate, first: int) -> Evaluate:
    """f without a graph in the steps before `first`, but still evaluated with grad mode on."""
    if first == 0:
        return differentiated

    def evaluate(k: int, leaves: Sequence[Tensor]) -> list[Tensor]:
        if k >= 2 * first:
            return differentiated(k, leaves)
        with torch.enable_grad():
            return [value.detach() for value in plain(k, [leaf.detach() for leaf in leaves])]

    return evaluate


# ---- float states ----------------------------------------------------------------------------


class _FloatNodes:
    """The pair as differentiable tensors: the reference for ``FloatPair``."""

    def __init__(self, problem: Problem) -> None:
        layout = problem.layout()
        self.layout, self.schedule = layout, problem.schedule
        self.first, self.save_at = problem.first_step, problem.save_at
        self.saved: dict[int, Leaves] = {}
        self.z = self._begun(problem.z0)
        self.y = self.z if problem.y0 is None else self._begun(problem.y0)

    def _begun(self, leaves: Sequence[Tensor]) -> Leaves:
        rows = zip(leaves, self.layout.state, strict=True)
        return [(leaf.detach() if self.first else leaf).to(kept) for leaf, kept in rows]

    @property
    def read_y(self) -> Leaves:
        return self.read(self.y)

    @property
    def read_z(self) -> Leaves:
        return self.read(self.z)

    def read(self, state: Leaves) -> Leaves:
        """What f reads, as one node: all uses in f are summed before the adjoint is added."""
        return [_read(s, dtype) for s, dtype in zip(state, self.layout.input, strict=True)]

    def update_y(self, n: int, f: Leaves) -> None:
        self.y = self._updated(n, self.y, f)

    def update_z(self, n: int, f: Leaves) -> None:
        self.z = self._updated(n, self.z, f)
        if n + 1 in self.save_at:
            self.saved[n + 1] = self.read(self.z)

    def _updated(self, n: int, state: Leaves, f: Leaves) -> Leaves:
        beta, moving = self.schedule.applied(n), self.schedule.moving(n)
        if n < self.first and isinstance(beta, Tensor):
            beta = beta.detach()

        def new(s: Tensor, value: Tensor) -> Tensor:
            used = where_moving(moving, value, 0.0)  # an unused Inf must not reach beta
            return where_moving(moving, updated(s, used, as_beta(beta, s)).to(s.dtype), s)

        return [new(s, value) for s, value in zip(state, f, strict=True)]


def _read(state: Tensor, dtype: torch.dtype) -> Tensor:
    return state.view_as(state) if state.dtype == dtype else state.to(dtype)


def _run_float(problem: Problem, stopping: Stopping, *, again: bool = False) -> _Run:
    auxiliary = problem.auxiliary()
    evaluate = collecting(_evaluate(problem, again=again), auxiliary)
    first = evaluate(0, [leaf.view_as(leaf) for leaf in problem.z0])
    nodes = _FloatNodes(problem)
    steps = iterate(nodes, first, evaluate, problem.schedule, stopping)
    saved = [nodes.saved[step] for step in problem.save_at]
    aux = [] if auxiliary is None else auxiliary.result()
    return nodes.read(nodes.z), nodes.read(nodes.y), saved, nodes, steps, aux


def differentiated_again(
    problem: Problem,
    steps: int,
    inputs: Primals[Tensor],
    wanted: Primals[bool],
    grads: Sequence[Tensor | None],
    ends: Sequence[Tensor],
) -> Primals[Tensor | None]:
    """The gradients of the inputs as differentiable tensors. Memory grows with the steps.

    `ends`: the final y and z of the forward pass; RuntimeError if they are others now.
    """
    if not problem.format.plain:
        refuse_second_derivative()
    gate = _Gate()
    outer = inputs.all()[: len(inputs.all()) - len(inputs.closure)]
    cut = [_Cut.apply(gate, t) if t.requires_grad else t for t in outer]
    targets = [*cut, *inputs.closure]
    through = Primals.split(targets, inputs.counts())
    again = replace(
        problem,
        z0=list(through.z0),
        y0=list(through.y0) or None,
        tensors=list(through.arguments),
        schedule=problem.schedule.again(steps, *through.beta),
        adjoint=Backprop(),
    )
    with problem.evaluation.replay(inputs.closure):
        z, y, saved, _, _, aux = _run_float(again, Stopping(None, 1, None, again.z0[0].device))
        if _are_far([*y, *z], ends):
            raise returned_other()
        chosen = [i for i, want in enumerate(wanted.all()) if want and targets[i].requires_grad]
        outputs = [leaf for leaves in (z, y, *saved, aux) for leaf in leaves]
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
        found = torch.autograd.grad(
            [o for o, _ in pairs],
            [targets[i] for i in chosen],
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
    gate.open = True
    result: list[Tensor | None] = [None] * len(targets)
    for i, gradient in zip(chosen, found, strict=True):
        result[i] = gradient
    return Primals.split(result, inputs.counts())


def _are_far(found: Sequence[Tensor], ends: Sequence[Tensor]) -> bool:
    """Whether a tensor is further from its end than by rounding. NaN is not."""
    rows = [(a.detach(), b.to(a.dtype)) for a, b in zip(found, ends, strict=True) if a.numel()]
    far = [(a - b).abs().amax() > NOISE * b.abs().amax() for a, b in rows]
    return any(map(bool, far))


class _Gate:
    """Whether gradients pass a ``_Cut``."""

    open = False


class _Cut(torch.autograd.Function):
    """The identity; its gradient stops here until the gate is open.

    An argument may depend on a parameter that f also reads. The first derivative must not continue
    through the argument, or that parameter would be counted twice; the second derivative must.
    """

    @staticmethod
    def forward(ctx: Any, gate: _Gate, x: Tensor) -> Tensor:
        ctx.gate = gate
        return alias(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        return None, grad if ctx.gate.open else None


# ---- other states ----------------------------------------------------------------------------


def _run_pair(problem: Problem, stopping: Stopping, *, again: bool = False) -> _Run:
    auxiliary, cut = problem.auxiliary(), problem.first_step
    evaluate = collecting(_evaluate(problem, again=again), auxiliary)
    start = begun(problem.z0, cut)
    first = evaluate(0, attached(start, problem.z0))
    pair = problem.pair([value.detach() for value in first], keep=False, private=True)
    y = start if problem.y0 is None else begun(problem.y0, cut)
    nodes = GradientGraph(pair, y, start, second=False, first=cut, save_at=problem.save_at)
    steps = iterate(nodes, first, evaluate, problem.schedule, stopping)
    # Separate nodes: f's gradients of y are summed before the caller's are added.
    z, y = pair.read_z, [leaf.clone() for leaf in pair.read_y]  # f's graph has saved the latter
    saved = [nodes.saved[step] for step in problem.save_at]
    aux = [] if auxiliary is None else auxiliary.result()
    return attached(nodes.z, z), attached(nodes.y, y), saved, pair, steps, aux
