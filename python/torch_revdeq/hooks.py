"""``adjoint="hooks"``: autograd's own graph, without the tensors that it would have saved.

The graph of all half steps is kept, its saved tensors are dropped, and come again on the way back
from f evaluated at the reconstructed state. The gradient goes through autograd's graph itself, so
whatever works with autograd works here: what f closes over, leaf or not, and modules that exchange
their parameters around each call, as FSDP2 does. The graph's nodes grow with the number of steps;
its tensors do not.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .iteration import iterate
from .problem import Outputs, Problem
from .reconstruction import Check
from .solution import Stats
from .states import Pair
from .stored import Nodes, attached, begun

Saved = tuple[int, int]
"""Half step, and number of a tensor that autograd saved in it."""


def solve_hooks(problem: Problem) -> Outputs:
    """z, y and the statistics of a solve whose graph computes what it saved again."""
    learned = problem.schedule.tensor
    if learned is not None and learned.requires_grad and not problem.exact:
        raise ValueError(
            "adjoint: expected 'reversible' or 'backprop' for a beta that learns with a float "
            "state, got 'hooks'; choose one of them"
        )
    again = _Recomputation(problem)
    with problem.evaluation.forward(replayed=True):
        start = begun(problem.z0)
        first = again.evaluate(0, attached(start, problem.z0))
        pair = problem.pair([value.detach() for value in first], keep=True)
        y = start if problem.y0 is None else begun(problem.y0)
        nodes = Nodes(pair, y, start, second=not problem.exact)
        schedule = problem.schedule
        steps = iterate(nodes, first, again.evaluate, schedule, problem.stopping)
        z_leaves, y_leaves = pair.outputs()
    stats = problem.stats(pair, steps)
    problem.check_range(pair, stats, [*z_leaves, *y_leaves])
    again.finish(pair, steps, stats)
    return attached(nodes.z, z_leaves), attached(nodes.y, y_leaves), stats


class _Recomputation:
    """The saved tensors of a solve, by half step: counted forward, recomputed on the way back."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.counts: dict[int, int] = {}
        self.needs: dict[int, list[bool]] = {}  # whether the state that f read required grad
        self.versions: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self.starts = [t for leaves in (problem.z0, problem.y0 or ()) for t in leaves]
        self.start_versions = [t._version for t in self.starts]
        self.arguments = [t.detach().requires_grad_(t.requires_grad) for t in problem.tensors]
        self.task: int | None = None
        self.cache: dict[Saved, Tensor] = {}
        self.next = -1

    def evaluate(self, k: int, leaves: Sequence[Tensor]) -> list[Tensor]:
        """f in half step k, in autograd's graph, whose tensors are dropped."""
        self.counts[k] = 0
        self.needs[k] = [leaf.requires_grad for leaf in leaves]

        def pack(tensor: Tensor) -> Saved:
            index = self.counts[k]
            self.counts[k] = index + 1
            self._note(tensor)
            return k, index

        with saved_tensors_hooks(pack, self.unpack):
            return self.problem.evaluation(k, leaves, self.problem.tensors)

    def finish(self, pair: Pair, steps: int, stats: Stats) -> None:
        """After the forward pass: keep its end."""
        self.states = pair.tensors()
        self.leaves = len(pair.y)
        pair.forget()
        self.pair, self.steps, self.stats = pair, steps, stats

    def unpack(self, saved: Saved) -> Tensor:
        """A tensor that autograd saved in the forward pass."""
        task = torch._C._current_graph_task_id()
        if task != self.task or (saved not in self.cache and saved[0] > self.next):
            self._begin(task)
        while saved not in self.cache:
            if self.next < 0:
                raise RuntimeError(
                    f"f: expected to save {self.counts[saved[0]]} tensors for its gradient again, "
                    "got fewer on the way back; f must do the same each time it is called"
                )
            self._recompute(self.next)
        return self.cache.pop(saved)

    def _note(self, tensor: Tensor) -> None:
        """Remember the version of a leaf, so that a change of it is found."""
        if tensor.is_leaf and tensor.requires_grad and id(tensor) not in self.versions:
            self.versions[id(tensor)] = weakref.ref(tensor), tensor._version

    def _begin(self, task: int) -> None:
        leaves = [(ref(), version) for ref, version in self.versions.values()]
        leaves += list(zip(self.starts, self.start_versions, strict=True))
        if any(leaf is not None and leaf._version != version for leaf, version in leaves):
            raise RuntimeError(
                "solve: one of the variables needed for gradient computation has been modified by "
                "an inplace operation: the start or a parameter of f; change it after backward()"
            )
        self.task, self.cache, self.next = task, {}, 2 * self.steps - 1
        pairs = 2 * self.leaves
        states = [state.clone() for state in self.states[:pairs]] + self.states[pairs:]
        with torch.no_grad():
            self.walk = self.pair.resumed(states)
            self.check = Check(self.problem, self.walk)

    def _recompute(self, k: int) -> None:
        """Evaluate f in half step k, collect what it saves, and take its half step back."""
        n, at_y = divmod(k, 2)
        for stale in [key for key in self.cache if key[0] > k + 1]:
            del self.cache[stale]
        z = self.walk.read_z if k else self.problem.z0
        count = 0

        def pack(tensor: Tensor) -> None:
            nonlocal count
            self.cache[k, count] = tensor.detach()
            count += 1

        with self.problem.evaluation.replay(()):
            with torch.enable_grad():
                rows = zip(self.walk.read_y if at_y else z, self.needs[k], strict=True)
                state = [leaf.detach().requires_grad_(needs) for leaf, needs in rows]
                with saved_tensors_hooks(pack, _never):
                    out = self.problem.evaluation(k, state, self.arguments)
        if count != self.counts[k]:
            raise RuntimeError(
                f"f: expected to save {self.counts[k]} tensors for its gradient again, got {count} "
                "on the way back; f must do the same each time it is called"
            )
        with torch.no_grad():
            values = [value.detach() for value in out]
            (self.walk.invert_z if at_y else self.walk.invert_y)(n, values)
            self.next = k - 1
            if k == 0:
                spoiled = [t for t in self.cache.values() if t.is_floating_point()]
                z0, y0 = self.problem.z0, self.problem.y0 or ()
                self.check.after(self.walk, z0, y0, self.steps, self.stats, spoiled)


def _never(_: Any) -> Tensor:
    raise RuntimeError("solve: a graph of the way back was differentiated")
