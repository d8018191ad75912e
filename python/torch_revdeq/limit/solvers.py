"""Fixed-point iterations, which need not be reversible."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..iteration import residual as measured
from ..options import values
from ..options.values import shown
from .rows import as_leaves, as_rows

Map = Callable[[Sequence[Tensor]], list[Tensor]]
"""f as a solver sees it: from the leaves of z to the leaves of f(z), same shapes and dtypes."""


@dataclass
class Run:
    """The result of an iteration.

    Args:
        z: the leaves of the final state, in the shapes and dtypes of the initial ones.
        steps: evaluations of f.
        residual: ``relative_residual(z, f(z))`` of the last state that was measured: z, or the
            state before the last step. NaN counts as not converged.
    """

    z: list[Tensor]
    steps: int
    residual: float


def relative_residual(z: Sequence[Tensor], value: Sequence[Tensor]) -> float:
    """The largest over the leaves of norm(value - z) / (1e-5 + norm(value)), where value is f(z).

    Norms are computed in float64. NaN if a leaf contains NaN or Inf. Waits for the device.
    """
    return float(measured.relative_residual([leaf.contiguous() for leaf in z], value))


def is_lost(residual: float, z: Sequence[Tensor], value: Sequence[Tensor]) -> bool:
    """Whether neither z nor f(z), of this residual, has a finite element, where a solver stops.

    An f that maps NaN to numbers could still recover later; solvers do not wait for that. Waits
    for the device if the residual is not finite.
    """
    return not math.isfinite(residual) and bool(measured.nothing_finite(z, value))


class FixedPointSolver(Protocol):
    """What ``fixed_point`` takes as `solver` and `adjoint_solver`: any object with this method.

    It sees neither arguments nor gradients: f maps a list of tensors to one of the same shapes and
    dtypes, without a graph. In the backward pass the same method is given u -> g + u J, which is
    linear, and starts from g.
    """

    def run(self, f: Map, z: list[Tensor], tol: float, max_steps: int) -> Run:
        """Iterate from z until the relative residual is below tol.

        Evaluate f at most `max_steps` times. Do not modify the tensors of z in place.
        """
        ...


def number(value: Any) -> float:
    """A solver's option as a float; NaN, which fails every bound, if it is not a number."""
    read = values.number(value)
    return math.nan if read is values.UNFIT else read


def check_memory(memory: Any, least: int) -> None:
    """ValueError unless it is an integer of at least `least`."""
    if values.integer(memory, least) is values.UNFIT:
        raise ValueError(f"memory: expected an integer of at least {least}, got {shown(memory)}")


def check_batched(batched: Any) -> None:
    """ValueError unless it is a bool."""
    if values.read_flag(batched) is values.UNFIT:
        raise ValueError(f"batched: expected True or False, got {shown(batched)}")


@dataclass(frozen=True)
class Relaxed:
    """z <- (1 - beta) z + beta f(z).

    Args:
        beta: in (0, 2).
    """

    beta: float = 0.8

    def __post_init__(self) -> None:
        """ValueError unless beta is in (0, 2)."""
        if not 0 < number(self.beta) < 2:
            raise ValueError(f"beta: expected a number inside (0, 2), got {shown(self.beta)}")

    def run(self, f: Map, z: list[Tensor], tol: float, max_steps: int) -> Run:
        """Iterate from z until the relative residual is below tol."""
        steps, residual = 0, math.inf
        while steps < max_steps and not residual < tol:
            value = f(z)
            residual = relative_residual(z, value)
            lost = is_lost(residual, z, value)
            z = self.step(z, value)
            steps += 1
            if lost:
                break
        return Run(z, steps, residual)

    def step(self, z: Sequence[Tensor], value: Sequence[Tensor]) -> list[Tensor]:
        """The next state, from one and its f."""
        if self.beta == 1:
            return list(value)
        return [old.lerp(new, self.beta) for old, new in zip(z, value, strict=True)]


def Picard() -> Relaxed:  # noqa: N802
    """z <- f(z)."""
    return Relaxed(1.0)


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration: combines the last states so that their residuals nearly cancel.

    Args:
        memory: number of states to combine, at least 2.
        beta: relaxation factor: the share of f in the combination, in (0, 1].
        ridge: added to the diagonal of the normal equations, relative to its mean.
        batched: combine each row of the first dimension separately, as for a batch of independent
            problems. All leaves must have the same first dimension. False: one combination for all.
    """

    memory: int = 6
    beta: float = 1.0
    ridge: float = 1e-6
    batched: bool = False

    def __post_init__(self) -> None:
        """ValueError for an invalid option."""
        check_memory(self.memory, 2)
        if not 0 < number(self.beta) <= 1:
            raise ValueError(f"beta: expected a number in (0, 1], got {shown(self.beta)}")
        if not 0 <= number(self.ridge) < math.inf:
            raise ValueError(f"ridge: expected a number of at least 0, got {shown(self.ridge)}")
        check_batched(self.batched)

    def run(self, f: Map, z: list[Tensor], tol: float, max_steps: int) -> Run:
        """Iterate from z until the relative residual is below tol."""
        states: list[Tensor] = []
        gaps: list[Tensor] = []
        for step in range(1, max_steps + 1):
            value = f(z)
            residual = relative_residual(z, value)
            if residual < tol or step == max_steps or is_lost(residual, z, value):
                return Run(value, step, residual)
            x = as_rows(z, self.batched, "Anderson")
            states = [*states[1 - self.memory :], x]
            gaps = [*gaps[1 - self.memory :], as_rows(value, self.batched, "Anderson") - x]
            z = as_leaves(self._combined(torch.stack(states, 1), torch.stack(gaps, 1)), z)
        raise ValueError(f"max_steps: expected at least 1, got {max_steps}")

    def _combined(self, x: Tensor, gaps: Tensor) -> Tensor:
        """The next state, from states and gaps f(x) - x, both [rows, memory, numbers]."""
        gram = gaps @ gaps.mT
        scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None].clamp_min(1e-30)
        count = gram.shape[-1]
        eye = torch.eye(count, dtype=gram.dtype, device=gram.device)
        ones = torch.ones(len(gram), count, 1, dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.solve(gram / scale + self.ridge * eye, ones)
        weights = weights / weights.sum(1, keepdim=True)
        return (weights * (x + self.beta * gaps)).sum(1)
