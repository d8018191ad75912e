"""Checks of the options of ``fixed_point``, and of user-defined solvers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..evaluation.effects.written import version_of
from .broyden import Broyden
from .solvers import Anderson, FixedPointSolver, Map, Relaxed, Run, relative_residual

OURS = (Anderson, Broyden, Relaxed)
"""Built-in solvers, whose residual is not checked again."""


def check_tolerances(tolerances: dict[str, float]) -> None:
    """ValueError unless every tolerance is a number of at least 0."""
    for name, tol in tolerances.items():
        if isinstance(tol, bool) or not isinstance(tol, Real) or not tol >= 0:
            raise ValueError(f"{name}: expected a number of at least 0, got {tol!r}")


def check_counts(counts: dict[str, int]) -> None:
    """ValueError unless every count is an integer of at least 1."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")


def check_trace(trace: Any) -> None:
    """TypeError unless it is True or False."""
    if not isinstance(trace, bool):
        raise TypeError(f"trace: expected True or False, got {trace!r}")


def check_solver(option: str, solver: Any) -> None:
    """TypeError for an object without a usable ``run``, such as a name or a class."""
    if not isinstance(solver, type) and callable(getattr(solver, "run", None)):
        return
    got = f"the class {solver.__name__}" if isinstance(solver, type) else repr(solver)
    raise TypeError(
        f"{option}: expected an object with a method run(f, z, tol, max_steps), got {got}; pass "
        "Picard(), Relaxed(beta), Anderson(), Broyden(), or your own as in FixedPointSolver"
    )


def run_checked(
    option: str, solver: FixedPointSolver, f: Map, z: list[Tensor], tol: float, max_steps: int
) -> Run:
    """Run ``solver.run`` and check its result: TypeError or ValueError. Its z has no graph."""
    versions = [version_of(leaf) for leaf in z]
    run = solver.run(f, list(z), tol, max_steps)
    name = f"{option}: expected {type(solver).__name__}.run"
    if versions != [version_of(leaf) for leaf in z]:
        raise ValueError(f"{name} to leave the z it is given unchanged, got an in-place change")
    if not isinstance(run, Run):
        raise TypeError(f"{name} to return a torch_revdeq.limit.Run, got {type(run).__name__}")
    if isinstance(run.steps, bool) or not isinstance(run.steps, Integral):
        raise TypeError(f"{name} to return steps as an integer, got {run.steps!r}")
    if run.steps < 0:
        raise ValueError(f"{name} to return the evaluations of f as steps, got {run.steps}")
    if isinstance(run.residual, bool) or not isinstance(run.residual, Real):
        raise TypeError(
            f"{name} to return a residual that is a number, got {type(run.residual).__name__}; "
            "torch_revdeq.limit.relative_residual(z, f(z)) returns one"
        )
    if run.residual < 0:
        raise ValueError(
            f"{name} to return a residual of at least 0, a norm, got {run.residual:.3g}; "
            "torch_revdeq.limit.relative_residual(z, f(z)) returns one"
        )
    return Run(_leaves(name, run.z, z), int(run.steps), float(run.residual))


def _leaves(name: str, got: Any, like: Sequence[Tensor]) -> list[Tensor]:
    if not isinstance(got, (list, tuple)) or len(got) != len(like):
        what = f"{len(got)}" if isinstance(got, (list, tuple)) else type(got).__name__
        raise TypeError(f"{name} to return a list of {len(like)} leaves as z, got {what}")
    for i, (leaf, want) in enumerate(zip(got, like, strict=True)):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{name} to return tensors in z, got {type(leaf).__name__} at {i}")
        if _form(leaf) != _form(want):
            raise ValueError(
                f"{name} to return z in its form, {_words(want)} at leaf {i}, got {_words(leaf)}"
            )
    return [leaf.detach() for leaf in got]


def _form(leaf: Tensor) -> tuple[Any, ...]:
    return leaf.shape, leaf.dtype, leaf.device


def _words(leaf: Tensor) -> str:
    return f"{leaf.dtype} {tuple(leaf.shape)} on {leaf.device}"


def check_residual(
    option: str, solver: FixedPointSolver, run: Run, tol: float, f: Callable[[], Sequence[Tensor]]
) -> None:
    """ValueError if the residual at z is larger than a user-defined solver reported.

    Ten times tol, or ten roundings of z, are allowed: some solvers measure before their last step.
    """
    if type(solver) in OURS or not run.residual < tol:
        return
    found = relative_residual(run.z, [leaf.detach() for leaf in f()])
    rounding = max(torch.finfo(leaf.dtype).eps for leaf in run.z)
    if not found <= 10 * max(tol, rounding):
        raise ValueError(
            f"{option}: expected the residual that {type(solver).__name__}.run reports, "
            f"{run.residual:.3g}, at the z that it returns, got {found:.3g}; the gradient would be "
            "wrong. Measure it with torch_revdeq.limit.relative_residual(z, f(z))"
        )


def warn_above(what: str, run: Run, tol: float, remedy: str, level: int = 3) -> None:
    """UserWarning: the iteration ended above its tolerance. `level` is warn's stacklevel."""
    if math.isfinite(run.residual):
        way_out = (
            f"Raise {remedy}, make f contract, or use solve(), whose gradient is exact for the "
            "steps taken"
        )
    else:
        way_out = "f returned NaN or Inf, or the iteration overflowed: check f and its input"
    warnings.warn(
        f"{what}: expected a residual below {tol:g}, got {run.residual:.3g} after {run.steps} "
        f"steps; the gradient is not that of a fixed point. {way_out}",
        stacklevel=level,
    )
