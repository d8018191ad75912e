"""aux, what f returns in addition to the state: losses, statistics, reduced over the evaluations.

``has_aux=True``. Values and gradients are those of ``adjoint="backprop"``, in which autograd sums
the same numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..runtime.deferred import ReconstructionError, deferred
from .marks import differs, mark_of
from .replay import Evaluate

Reduction: TypeAlias = Literal["sum", "mean", "last", "stack"]
REDUCTIONS = ("sum", "mean", "last", "stack")


class Auxiliary:
    """The leaves of aux in one forward pass. Differentiable where the evaluations are."""

    def __init__(
        self,
        how: Reduction,
        leaves: int,
        first: int = 0,
        *,
        in_place: bool = False,
        marked: bool = False,
    ) -> None:
        """Start empty.

        Args:
            how: the reduction.
            leaves: number of leaves of the state, which come before those of aux.
            first: the first half step that is differentiated.
            in_place: sum without a graph, in one tensor per leaf.
            marked: remember enough of every value to check that f returns it again.
        """
        self.how: Reduction = how
        self.leaves, self.first = leaves, first
        self.in_place, self.marked = in_place, marked
        self.count = 0
        self.marks: list[Tensor] = []  # of aux in every evaluation
        self.differentiable: list[bool] = []
        self._held: list[Any] = []

    def take(self, k: int, out: Sequence[Tensor], *, grad: Sequence[bool] | None = None) -> Any:
        """Collect aux and return the state's leaves; `grad`: which of all leaves require grad."""
        state, values = list(out[: self.leaves]), out[self.leaves :]
        needs = [t.requires_grad for t in values] if grad is None else list(grad[self.leaves :])
        if self.count == 0:
            self.differentiable = [False] * len(values)
        if k >= self.first:
            rows = zip(self.differentiable, needs, strict=True)
            self.differentiable = [known or need for known, need in rows]
        self._add(values)
        if self.marked:
            self.marks.append(mark_of(values))
        self.count += 1
        return state

    def _add(self, values: Sequence[Tensor]) -> None:
        if self.how == "last":
            self._held = [value.clone() for value in values]  # f may write into its own later
        elif self.how == "stack":
            self._held = self._held or [[] for _ in values]
            for held, value in zip(self._held, values, strict=True):
                held.append(value.clone())
        elif self.count == 0:
            self._held = [_summand(value).clone() for value in values]
        else:
            for i, value in enumerate(values):
                if self.in_place:
                    self._held[i].add_(_summand(value))
                else:
                    self._held[i] = self._held[i] + _summand(value)

    def result(self) -> list[Tensor]:
        """The reduction of all evaluations."""
        if self.how == "stack":
            return [torch.stack(held) for held in self._held]
        if self.how == "mean":
            return [total / self.count for total in self._held]
        return self._held


class AuxiliaryGradients:
    """The gradients of aux for each evaluation."""

    def __init__(
        self,
        how: Reduction,
        count: int,
        grads: Sequence[Tensor | None],
        marks: Sequence[Tensor] = (),
        noise: float = 0.0,
    ) -> None:
        """From the gradients of ``Auxiliary.result`` after `count` evaluations.

        `marks` are those of the forward pass; f must return the same values again, up to noise.
        """
        self.how, self.count, self.marks, self.noise = how, count, marks, noise
        self.failed: Tensor | None = None
        if how == "mean":
            grads = [None if grad is None else grad / count for grad in grads]
        self.grads = list(grads)

    def check(self, k: int, values: Sequence[Tensor]) -> None:
        """Compare the aux of half step k; on a CPU ReconstructionError at once."""
        if not self.marks:
            return
        failed = differs(self.marks[k], mark_of(values), self.noise)
        self.failed = failed if self.failed is None else self.failed | failed
        if not deferred(failed.device) and failed:
            raise other_aux()

    def of(self, k: int) -> list[Tensor | None]:
        """The gradients of the leaves that half step k returned."""
        if self.how == "last" and k != self.count - 1:
            return [None] * len(self.grads)
        if self.how == "stack":
            return [None if grad is None else grad[k] for grad in self.grads]
        return self.grads


def other_aux() -> ReconstructionError:
    """The error if f returned the same state, but another aux."""
    return ReconstructionError(
        "f: expected to return the same aux in both passes, got another in the backward pass, so "
        "its gradient would be wrong. Probable causes: aux depends on what f keeps from one "
        "evaluation to the next (a counter, a mean, the previous state), or on random numbers from "
        "a source other than torch's default generators; pass it as an argument, use "
        "pass_step=True, or choose adjoint='backprop'"
    )


def collecting(evaluate: Evaluate, auxiliary: Auxiliary | None) -> Evaluate:
    """The same evaluations, with aux passed on to `auxiliary`."""
    if auxiliary is None:
        return evaluate
    return lambda k, leaves: auxiliary.take(k, evaluate(k, leaves))


def _summand(value: Tensor) -> Tensor:
    """Counts are summed as torch.sum does, in int64."""
    if value.is_floating_point() or value.is_complex():
        return value
    return value.to(torch.int64)
