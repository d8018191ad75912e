"""What a solve returns: the equilibrium, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .runtime.deferred import PendingCheck, deferred_checks


@dataclass(eq=False)
class Stats:
    """What a solve did. What is still on a device is read when it is asked for.

    Attributes:
        state: the format of the state: "exact", or the name of a dtype.
        adjoint: how the solve is differentiated.
        state_bytes: bytes of both states and of the digits kept, which "reversible" and "hooks"
            hold for the backward pass, beside z0 and what belongs to f.
        frac_bits: fractional bits of an exact state, otherwise None.
        tol: as it was given; that of a ``StoppingRule``.
        route: what ran: "solver", or for a ``RevDEQ(LinearCell(...))`` the implementation of the
            whole solve in one op, and why, or why the solver.
    """

    _steps: int | Tensor
    state: str
    adjoint: str
    state_bytes: int
    frac_bits: int | None = None
    tol: float | None = None
    route: str = "solver"
    _residual: Tensor | Callable[[], Tensor] | None = field(default=None, repr=False)
    _sample_steps: Tensor | None = field(default=None, repr=False)
    _reconstruction_error: Tensor | float | None = field(default=None, repr=False)
    _pending: list[PendingCheck] = field(default_factory=list, repr=False)

    @property
    def steps(self) -> int:
        """Steps taken, of two half steps each; with per_sample those of the sample with the most.

        On a GPU, where one op took all steps of samples that halt, reading it waits for the device.
        """
        return int(self._steps)

    @property
    def nfe(self) -> int:
        """Evaluations of f in the forward pass: 2 steps. A backward pass takes as many again."""
        return 2 * self.steps

    @property
    def residual(self) -> float:
        """The relative residual norm(y - f(y)) / (1e-5 + norm(f(y))) that was measured last.

        The largest over the leaves, of the last step unless tol stopped the solve between checks.
        With per_sample the largest over the samples, each at the check where it halted if it did.
        NaN where one op took all steps without a tol. What a ``StoppingRule`` returned last, where
        one was given. Reading it waits for the device.
        """
        residual = self._measured()
        return float("nan") if residual is None else float(residual)

    def _measured(self) -> Tensor | None:
        return self._residual() if callable(self._residual) else self._residual

    @property
    def converged(self) -> bool | None:
        """Whether the residual is below tol, with per_sample that of all; None without a tol."""
        return None if self.tol is None else self.residual < self.tol

    @property
    def sample_steps(self) -> Tensor | None:
        """The steps that each sample took, int64, on the solve's device; None without per_sample.

        Its shape is that of the dimensions that make a sample. It is there at once; only reading
        its numbers waits for the device.
        """
        return self._sample_steps

    @property
    def reconstruction_error(self) -> float | None:
        """How far from the start the last backward pass ended: 0.0 for an exact state.

        The largest difference of an element, over the largest number in start and end. None before
        a backward pass, and where the adjoint reconstructs nothing.
        """
        error = self._reconstruction_error
        return None if error is None else float(error)

    def verify(self) -> None:
        """Raise if a check of this solve failed: its range, or its last backward pass.

        On a CPU checks raise where they happen. On a GPU this reads their outcome from the device,
        and waits for it; of a solve in a CUDA graph that is the outcome of the last replay.
        """
        for check in self._pending:
            deferred_checks.forget(check)
        for check in self._pending:
            check.raise_if_failed()

    def __getstate__(self) -> dict[str, Any]:
        """Numbers only: a copy or a pickle has no part in checks that are on their way."""
        state = dict(self.__dict__)
        state["_steps"] = self.steps
        residual = self._measured()
        state["_residual"] = None if residual is None else residual.detach().cpu()
        steps = self._sample_steps
        state["_sample_steps"] = None if steps is None else steps.cpu()
        error = self._reconstruction_error
        state["_reconstruction_error"] = None if error is None else float(error)
        state["_pending"] = []
        return state


@dataclass(eq=False)
class Solution:
    """The pair at the end of a solve.

    Attributes:
        z: the solution: structure, shapes and dtypes of z0. z and y are differentiable.
        y: the other half of the pair, a half step behind; the same at an equilibrium.
        stats: see ``Stats``.
        saved: z after each of the steps named in `save_at`, in that order. Differentiable.
        aux: with has_aux, what f returned beside the state, put together over the evaluations as
            the option `aux` says. Differentiable. None without has_aux.
    """

    z: Any
    y: Any
    stats: Stats
    saved: list[Any] = field(default_factory=list)
    aux: Any = None

    def verify(self) -> None:
        """As ``Stats.verify``."""
        self.stats.verify()
