"""What ``fixed_point`` returns: the fixed point, and the solver statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from ..solution import Result, described, no_items, numbers, result_of


@dataclass(eq=False, repr=False)
class FixedPointStats:
    """Solver statistics of ``fixed_point``.

    Attributes:
        steps: evaluations of f in the forward iteration.
        nfe: evaluations of f in the forward pass, including those for the gradient.
        residual: final norm(f(z) - z) / (1e-5 + norm(f(z))), the largest over the leaves.
        converged: whether the residual is below tol.
        adjoint_steps: vector-Jacobian products of the adjoint iteration, after a backward pass.
        adjoint_residual: the final residual of the adjoint iteration. None with a phantom gradient.
        residuals: with trace=True the residual of every evaluation in the forward iteration,
            float64, on its device; ``residuals[n - 1]`` is that of the input of evaluation n.
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
        """Like ``Stats.result``."""
        return result_of(self.residual, converged=self.converged)

    def as_dict(self, prefix: str = "") -> dict[str, int | float]:
        """Like ``Stats.as_dict``: the attributes that are not None, and diverged (0 or 1)."""
        return numbers(prefix, {**self._numbers(), "diverged": self.result == "diverged"})

    def __repr__(self) -> str:
        """The attributes that are not None, and the result."""
        return described("FixedPointStats", **self._numbers(), result=self.result)

    def _numbers(self) -> dict[str, int | float | None]:
        return {name: value for name, value in vars(self).items() if name != "residuals"}


@dataclass(eq=False)
class FixedPoint:
    """A fixed point: z, with z0's structure and dtypes, differentiable; and its statistics."""

    z: Any
    stats: FixedPointStats

    def __getitem__(self, key: object) -> NoReturn:
        """TypeError: a result is not the tuple that some libraries return."""
        raise no_items(self, "found")
