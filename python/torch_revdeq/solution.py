"""What a solve returns: the equilibrium, and what is known about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor

from .runtime.deferred import PendingCheck, deferred_checks

Result: TypeAlias = Literal["converged", "max_steps", "diverged"]


def result_of(residual: float, *, converged: bool | None) -> Result:
    """How an iteration ended that left this residual."""
    if not math.isfinite(residual):
        return "diverged"
    return "converged" if converged else "max_steps"


@dataclass(eq=False, repr=False)
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
            whole solve in one op, and why, or why the solver. And why another adjoint was taken.
    """

    _steps: int | Tensor
    state: str
    adjoint: str
    state_bytes: int
    frac_bits: int | None = None
    tol: float | None = None
    route: str = "solver"
    _residual: Tensor | Callable[[], Tensor] | None = None
    _residuals: Tensor | Callable[[], Tensor] | None = None
    _stopped: bool = False  # at tol
    _sample_steps: Tensor | None = None
    _reconstruction_error: Tensor | float | None = None
    _pending: list[PendingCheck] = field(default_factory=list)

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
        residual = _settled(self._residual)
        return float("nan") if residual is None else float(residual)

    @property
    def residuals(self) -> Tensor | None:
        """With trace=True the residual of every step, float64 [steps], on the solve's device.

        ``residuals[n - 1]`` is that of step n. With per_sample [steps, *samples], in which a sample
        that has halted keeps the residual at which it did. Of a ``StoppingRule`` what it returned,
        and NaN in the steps between its checks. With a process_group those of this rank alone. It
        is there at once; only reading its numbers waits for the device. None without a trace, and
        where no residual is measured: inside a transform of torch.func or a compiled graph with
        adjoint="functional", and in an exported program.
        """
        return _settled(self._residuals)

    @property
    def converged(self) -> bool | None:
        """Whether the solve stopped at tol, or its residual is below; None without a tol.

        With per_sample whether all samples halted.
        """
        if self.tol is None:
            return None
        return self._stopped or self.residual < self.tol

    @property
    def result(self) -> Result | None:
        """How the solve ended: "converged", "max_steps" or "diverged". Waits for the device.

        "converged": at tol. "diverged": with a residual that is NaN or infinite, as it is where the
        state is. "max_steps": otherwise, and always without a tol. None where no residual was
        measured: where one op took all steps without a tol, and where ``residuals`` are None for
        that reason.
        """
        if self._residual is None:
            return None
        return result_of(self.residual, converged=self.converged)

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

    def as_dict(self, prefix: str = "") -> dict[str, int | float]:
        """Plain numbers for a logger, each name with the prefix in front. Waits for the device.

        steps, nfe and state_bytes; residual and diverged (0 or 1) where a residual was measured;
        converged (0 or 1) with a tol; mean_steps, over the samples, with per_sample;
        reconstruction_error after a backward pass that has one.
        """
        found: dict[str, int | float | None] = {"steps": self.steps, "nfe": self.nfe}
        if self._residual is not None:
            found |= {"residual": self.residual, "converged": self.converged}
            found["diverged"] = self.result == "diverged"
        if self._sample_steps is not None and self._sample_steps.numel():
            found["mean_steps"] = float(self._sample_steps.double().mean())
        found["reconstruction_error"] = self.reconstruction_error
        found["state_bytes"] = self.state_bytes
        return numbers(prefix, found)

    def __repr__(self) -> str:
        """What there is to read without a wait for a device."""
        residual = _settled(self._residual)
        here = residual is not None and residual.device.type == "cpu"
        return described(
            "Stats",
            steps=self._steps,
            residual=residual,
            result=self.result if here else None,
            reconstruction_error=self._reconstruction_error,
            tol=self.tol,
            state=self.state,
            frac_bits=self.frac_bits,
            adjoint=self.adjoint,
            state_bytes=self.state_bytes,
            route=self.route,
        )

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
        for name in ("_residual", "_residuals"):
            value = _settled(state[name])
            state[name] = None if value is None else value.detach().cpu()
        steps = self._sample_steps
        state["_sample_steps"] = None if steps is None else steps.cpu()
        error = self._reconstruction_error
        state["_reconstruction_error"] = None if error is None else float(error)
        state["_pending"] = []
        return state


def _settled(value: Tensor | Callable[[], Tensor] | None) -> Tensor | None:
    """What was measured, put together where that was left for later."""
    return value() if callable(value) else value


def described(name: str, **values: Any) -> str:
    """A repr of values that are not None: numbers short, and of a device where they are."""
    rows = ((key, value) for key, value in values.items() if value is not None)
    return f"{name}({', '.join(f'{key}={_shown(value)}' for key, value in rows)})"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            return f"<on {value.device}>"
        value = value.item()
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def numbers(prefix: str, values: dict[str, int | float | None]) -> dict[str, int | float]:
    """Those that are not None, with the prefix in front of each name; 1 and 0 for bools."""
    rows = ((f"{prefix}{name}", value) for name, value in values.items() if value is not None)
    return {name: int(value) if isinstance(value, bool) else value for name, value in rows}


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
