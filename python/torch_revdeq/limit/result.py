"""What ``fixed_point`` returns: a limit, and what the iterations did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..solution import Result, described, numbers, result_of


@dataclass(eq=False, repr=False)
class FixedPointStats:
    """What the iterations did.

    Attributes:
        steps: of the forward iteration.
        nfe: evaluations of f in the forward pass, those for the gradient included.
        residual: norm(f(z) - z) / (1e-5 + norm(f(z))), the largest over the leaves, at its end.
        converged: whether that is below tol.
        adjoint_steps: vector-Jacobian products of the backward iteration, after a backward pass.
        adjoint_residual: its residual, in the same sense. None with a phantom gradient.
        residuals: with trace=True that of every evaluation of the forward iteration, float64, on
            its device; ``residuals[n - 1]`` is of the state that evaluation n was given.
    """

    steps: int
    nfe: int
    residual: float
    converged: bool
    adjoint_steps: int | None = None
    adjoint_residual: float | None = None
    residuals: Tensor | None = None

    @property
    def result(self) -> Result:
        """As ``Stats.result``."""
        return result_of(self.residual, converged=self.converged)

    def as_dict(self, prefix: str = "") -> dict[str, int | float]:
        """As ``Stats.as_dict``: the attributes that are not None, and diverged (0 or 1)."""
        return numbers(prefix, {**self._numbers(), "diverged": self.result == "diverged"})

    def __repr__(self) -> str:
        """The attributes that are not None, and the result."""
        return described("FixedPointStats", **self._numbers(), result=self.result)

    def _numbers(self) -> dict[str, int | float | None]:
        return {name: value for name, value in vars(self).items() if name != "residuals"}


@dataclass(eq=False)
class FixedPoint:
    """A limit: z, of z0's structure and dtypes, differentiable, and ``FixedPointStats``."""

    z: Any
    stats: FixedPointStats
