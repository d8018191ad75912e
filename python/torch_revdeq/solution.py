"""What a solve returns: the solution and its statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, TypeAlias

from torch import Tensor

from .runtime.deferred import PendingCheck, deferred_checks

Result: TypeAlias = Literal["converged", "max_steps", "diverged"]


def result_of(residual: float, *, converged: bool | None) -> Result:
    """How an iteration with this final residual ended."""
    if not math.isfinite(residual):
        return "diverged"
    return "converged" if converged else "max_steps"


@dataclass(eq=False, repr=False)
class Stats:
    """Solver statistics. Device values are read lazily.

    Attributes:
        state: the format of the state: "exact", or the name of a dtype.
        adjoint: how the solve is differentiated.
        state_bytes: bytes of both states and of the digits that "reversible" and "hooks" keep for
            the backward pass, not counting z0 and what f keeps.
        frac_bits: fractional bits of an exact state, otherwise None.
        tol: as given; for a ``StoppingRule``, its tol.
        route: what ran, and why: "solver", or for a ``RevDEQ(LinearCell(...))`` the implementation
            that ran the whole solve in one op. Also why "auto" chose another adjoint.
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
        """Steps taken, of two half steps each; with per_sample the most that a sample took.

        Waits for a GPU only where one op ran the whole solve with per_sample.
        """
        return int(self._steps)

    @property
    def nfe(self) -> int:
        """Evaluations of f in the forward pass: 2 * steps. A backward pass takes as many again."""
        return 2 * self.steps

    @property
    def residual(self) -> float:
        """The last relative residual norm(y - f(y)) / (1e-5 + norm(f(y))). Waits for the device.

        The largest over the leaves, of the last step unless tol stopped the solve between checks.
        With per_sample the largest over the samples, for a halted sample at the check where it
        halted. NaN where one op ran all steps without a tol. With a ``StoppingRule``, the value it
        returned last.
        """
        residual = _settled(self._residual)
        return float("nan") if residual is None else float(residual)

    @property
    def residuals(self) -> Tensor | None:
        """With trace=True the residual of every step, float64 [steps], on the solve's device.

        ``residuals[n - 1]`` is the residual of step n. With per_sample the shape is [steps,
        *samples], and a halted sample keeps the residual at which it halted. With a
        ``StoppingRule``, the values it returned, and NaN for steps between its checks. With a
        process_group, only this rank's. Available at once; reading its numbers waits for the
        device. None without a trace, and where no residual is measured: inside a torch.func
        transform or a compiled graph with adjoint="functional", and in an exported program.
        """
        return _settled(self._residuals)

    @property
    def converged(self) -> bool | None:
        """Whether the solve stopped at tol or its residual is below tol; None without a tol.

        With per_sample: whether all samples halted.
        """
        if self.tol is None:
            return None
        return self._stopped or self.residual < self.tol

    @property
    def result(self) -> Result | None:
        """How the solve ended: "converged", "max_steps" or "diverged". Waits for the device.

        "converged": reached tol. "diverged": the residual is NaN or infinite, as it is where the
        state is. "max_steps": otherwise, and always without a tol. None where no residual was
        measured: where one op ran all steps without a tol, and in the cases listed under
        ``residuals``.
        """
        if self._residual is None:
            return None
        return result_of(self.residual, converged=self.converged)

    @property
    def sample_steps(self) -> Tensor | None:
        """Steps taken by each sample, int64, on the solve's device; None without per_sample.

        Its shape is that of the sample dimensions. Available at once; reading its numbers waits for
        the device.
        """
        return self._sample_steps

    @property
    def reconstruction_error(self) -> float | None:
        """Relative error of the initial state that the last backward pass reconstructed.

        The largest difference of an element, over the largest number in the initial and final
        state; 0.0 for an exact state. None before a backward pass, and where the adjoint
        reconstructs nothing.
        """
        error = self._reconstruction_error
        return None if error is None else float(error)

    def as_dict(self, prefix: str = "") -> dict[str, int | float]:
        """Plain numbers for a logger, each name prefixed with `prefix`. Waits for the device.

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
        """The values that can be read without waiting for a device."""
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

        On a CPU checks raise where they happen. On a GPU this reads their outcome from the device
        and waits for it; in a CUDA graph, the outcome of the last replay.
        """
        for check in self._pending:
            deferred_checks.forget(check)
        for check in self._pending:
            check.raise_if_failed()

    def __getstate__(self) -> dict[str, Any]:
        """Numbers only: a copy or a pickle does not take part in pending checks."""
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
    """What was measured; computed now if that was deferred."""
    return value() if callable(value) else value


def described(name: str, **values: Any) -> str:
    """A repr of the values that are not None; a tensor on a device is shown by its device."""
    rows = ((key, value) for key, value in values.items() if value is not None)
    return f"{name}({', '.join(f'{key}={_shown(value)}' for key, value in rows)})"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            return f"<on {value.device}>"
        value = value.item()
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def numbers(prefix: str, values: dict[str, int | float | None]) -> dict[str, int | float]:
    """The values that are not None, by prefixed names; bools as 1 and 0."""
    rows = ((f"{prefix}{name}", value) for name, value in values.items() if value is not None)
    return {name: int(value) if isinstance(value, bool) else value for name, value in rows}


def no_items(result: object, name: str) -> TypeError:
    """The error for a result that is indexed, unpacked or iterated over."""
    return TypeError(
        f"a {type(result).__name__} is read by attributes, not unpacked or indexed; take {name}.z "
        f"and {name}.stats"
    )


@dataclass(eq=False)
class Solution:
    """The result of a solve.

    Attributes:
        z: the final z: structure, shapes and dtypes of z0. z and y are differentiable.
        y: the final y, one half step behind z; equal to z at an equilibrium.
        stats: see ``Stats``.
        saved: z after each of the steps named in `save_at`, in that order. Differentiable.
        aux: with has_aux, f's aux reduced over the evaluations as the option `aux` says.
            Differentiable. None without has_aux.
    """

    z: Any
    y: Any
    stats: Stats
    saved: list[Any] = field(default_factory=list)
    aux: Any = None

    def __getitem__(self, key: object) -> NoReturn:
        """TypeError: a result is not the tuple that some libraries return."""
        raise no_items(self, "solution")

    def verify(self) -> None:
        """Like ``Stats.verify``."""
        self.stats.verify()
