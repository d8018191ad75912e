"""Iterations to a fixed point that nobody needs to run backwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..iteration.residual import relative_residual

Map = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass
class Run:
    """Where an iteration ended."""

    z: list[Tensor]
    steps: int  # evaluations of the map
    residual: float  # norm(f(z) - z) / (1e-5 + norm(f(z))) of the last of them


class FixedPointSolver(Protocol):
    """A way to a fixed point."""

    def run(self, f: Map, z: list[Tensor], tol: float, max_steps: int) -> Run:
        """Iterate from z until the relative residual is below tol."""
        ...


@dataclass(frozen=True)
class Relaxed:
    """z <- (1 - beta) z + beta f(z).

    Args:
        beta: in (0, 2).
    """

    beta: float = 0.8

    def __post_init__(self) -> None:
        """ValueError outside of (0, 2)."""
        if not 0 < self.beta < 2:
            raise ValueError(f"beta: expected a number inside (0, 2), got {self.beta}")

    def run(self, f: Map, z: list[Tensor], tol: float, max_steps: int) -> Run:
        """Iterate from z until the relative residual is below tol."""
        steps, residual = 0, math.inf
        while steps < max_steps and not residual < tol:
            value = f(z)
            residual = _residual(z, value)
            z = self.step(z, value)
            steps += 1
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
    """The combination of the last states whose residuals nearly cancel, taken a step of beta on.

    Args:
        memory: states that are combined, at least 2.
        beta: the share of f in the combination, in (0, 1].
        ridge: added to the diagonal of the normal equations, relative to its mean.
        batched: combine each row of the first dimension by itself, as for a batch of independent
            problems. All leaves must have the same first dimension. Otherwise one combination.
    """

    memory: int = 6
    beta: float = 1.0
    ridge: float = 1e-6
    batched: bool = False

    def __post_init__(self) -> None:
        """ValueError where an option makes no sense."""
        if self.memory < 2:
            raise ValueError(f"memory: expected at least 2 states, got {self.memory}")
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta: expected a number in (0, 1], got {self.beta}")
        if not self.ridge >= 0:
            raise ValueError(f"ridge: expected a number of at least 0, got {self.ridge}")

    def run(self, f: Map, z: list[Tensor], tol: float, max_steps: int) -> Run:
        """Iterate from z until the relative residual is below tol."""
        states: list[Tensor] = []
        values: list[Tensor] = []
        for step in range(1, max_steps + 1):
            value = f(z)
            residual = _residual(z, value)
            if residual < tol or step == max_steps:
                return Run(value, step, residual)
            states = [*states[1 - self.memory :], self._rows(z)]
            values = [*values[1 - self.memory :], self._rows(value)]
            z = self._leaves(self._combined(states, values), z)
        raise ValueError(f"max_steps: expected at least 1, got {max_steps}")

    def _combined(self, states: list[Tensor], values: list[Tensor]) -> Tensor:
        x, fx = torch.stack(states, 1), torch.stack(values, 1)  # rows, memory, numbers
        gaps = fx - x
        gram = gaps @ gaps.mT
        scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None].clamp_min(1e-30)
        count = gram.shape[-1]
        eye = torch.eye(count, dtype=gram.dtype, device=gram.device)
        ones = torch.ones(len(gram), count, 1, dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.solve(gram / scale + self.ridge * eye, ones)
        weights = weights / weights.sum(1, keepdim=True)
        return (weights * (x + self.beta * gaps)).sum(1)

    def _rows(self, leaves: Sequence[Tensor]) -> Tensor:
        wide = torch.float64 if any(t.dtype == torch.float64 for t in leaves) else torch.float32
        if not self.batched:
            return torch.cat([leaf.reshape(1, -1).to(wide) for leaf in leaves], 1)
        sizes = {leaf.shape[:1] for leaf in leaves}
        if len(sizes) > 1 or not all(leaf.dim() for leaf in leaves):
            raise ValueError(
                "z0: expected leaves with one first dimension for Anderson(batched=True), got "
                f"{[tuple(leaf.shape) for leaf in leaves]}; choose batched=False"
            )
        return torch.cat([leaf.reshape(leaf.shape[0], -1).to(wide) for leaf in leaves], 1)

    def _leaves(self, rows: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        counts = [leaf.numel() // len(rows) if len(rows) else 0 for leaf in like]
        parts = zip(rows.split(counts, 1), like, strict=True)
        return [part.reshape(leaf.shape).to(leaf.dtype) for part, leaf in parts]


def _residual(z: Sequence[Tensor], value: Sequence[Tensor]) -> float:
    return float(relative_residual([leaf.contiguous() for leaf in z], value))
