"""A run whose state is lost, NaN or infinite everywhere, ends there; any other run goes on."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_revdeq import (
    Anderson,
    Picard,
    RangeError,
    Relaxed,
    StoppingRule,
    fixed_point,
    solve,
)
from torch_revdeq.iteration import residual, stopping

F32 = torch.float32
SOLVERS = (Picard(), Relaxed(0.5), Anderson(), Anderson(batched=True))
ADJOINTS = ("reversible", "hooks", "checkpoint", "backprop")


def counted(f: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], array[int]]:
    """f, and its calls."""
    calls = array("b")

    def call(z: Tensor) -> Tensor:
        calls.append(1)
        return f(z)

    return call, calls


def overflowing(z: Tensor) -> Tensor:
    return 1e30 * z + 1


def halved(z: Tensor) -> Tensor:
    return 0.5 * z + 1


def lost_in_one_row(z: Tensor) -> Tensor:
    return 0.5 * z + torch.tensor([[1.0], [math.nan], [2.0]])


# ---- fixed_point -----------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_fixed_point_stops_where_nothing_is_finite(solver: Any) -> None:
    f, calls = counted(overflowing)
    with pytest.warns(UserWarning, match="f returned NaN or Inf, or the iteration overflowed"):
        found = fixed_point(f, torch.zeros(3, 4), solver=solver, max_steps=50)
    assert found.stats.result == "diverged" and found.stats.steps <= 4
    assert len(calls) == found.stats.nfe == found.stats.steps + 2
    assert not found.z.isfinite().any()


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_the_adjoint_iteration_stops_there_too(solver: Any) -> None:
    x = torch.ones(3, 4, requires_grad=True)
    found = fixed_point(lambda z, x: 0.5 * z * x, torch.zeros(3, 4), x, solver=solver)
    with pytest.warns(UserWarning, match="the adjoint: expected a residual below"):
        (math.nan * found.z).sum().backward()
    assert found.stats.adjoint_steps is not None and found.stats.adjoint_steps <= 2


@pytest.mark.parametrize("solver", [Picard(), Relaxed(0.5), Anderson(batched=True)], ids=str)
def test_finite_rows_go_on_next_to_a_lost_one(solver: Any) -> None:
    options: dict[str, Any] = {"solver": solver, "tol": 0.0, "max_steps": 12}
    with pytest.warns(UserWarning, match="got nan after 12 steps"):
        found = fixed_point(lost_in_one_row, torch.zeros(3, 1), **options)
    assert found.stats.steps == 12 and found.stats.result == "diverged"
    with pytest.warns(UserWarning, match="after 12 steps"):
        alone = fixed_point(lambda z: 0.5 * z + 2.0, torch.zeros(1, 1), **options)
    assert torch.equal(found.z[2:], alone.z)


def test_an_iteration_that_returns_from_infinity_is_not_cut_off() -> None:
    """f(-1) is infinite, and f of that is 0."""
    found = fixed_point(lambda z: 1 / (1 + z), -torch.ones(2), solver=Picard(), max_steps=99)
    assert found.stats.result == "converged"
    torch.testing.assert_close(found.z, torch.full((2,), (5**0.5 - 1) / 2), rtol=1e-5, atol=0.0)


# ---- solve with a tol ------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0, 1], ids=["cpu", "as on a GPU"])
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_solve_stops_where_nothing_is_finite(
    adjoint: Any, lag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    late(monkeypatch, lag)
    f, calls = counted(overflowing)
    z0 = torch.zeros(3, 4)
    options: dict[str, Any] = {"adjoint": adjoint, "state": F32, "max_steps": 50}
    found = solve(f, z0, tol=1e-3, **options)
    assert found.stats.result == "diverged" and found.stats.steps <= 3 + 2 * lag
    assert len(calls) == 2 * found.stats.steps
    assert not torch.cat([found.z, found.y]).isfinite().any()
    assert solve(f, z0, **options).stats.steps == 50  # no tol, no end before the last


def late(monkeypatch: pytest.MonkeyPatch, lag: int) -> None:
    """Decide by the check before, as on a device that runs ahead."""
    init = stopping.Stopping.__init__

    def lagging(self: stopping.Stopping, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.lag = lag

    monkeypatch.setattr(stopping.Stopping, "__init__", lagging)


@pytest.mark.parametrize("lag", [0, 1], ids=["cpu", "as on a GPU"])
def test_an_exact_state_raises_after_the_first_nan(
    lag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    late(monkeypatch, lag)
    calls = array("b")

    def f(z: Tensor) -> Tensor:
        calls.append(1)
        return z + (math.nan if len(calls) > 5 else 1.0)

    with pytest.raises(RangeError, match="got a larger number, Inf or NaN"):
        solve(f, torch.zeros(3, 4), tol=1e-3, max_steps=50)
    assert len(calls) == 6 + 2 * lag


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_finite_rows_of_a_solve_go_on_next_to_a_lost_one(adjoint: Any) -> None:
    options: dict[str, Any] = {"adjoint": adjoint, "state": F32, "max_steps": 12}
    found = solve(lost_in_one_row, torch.zeros(3, 1), tol=1e-9, **options)
    alone = solve(lambda z: 0.5 * z + 2.0, torch.zeros(1, 1), **options)
    assert found.stats.steps == 12 and torch.equal(found.z[2:], alone.z)


class Rule(StoppingRule):
    def residual(self, y: Tensor, f: Tensor) -> Tensor:
        return (y - f).norm()


@pytest.mark.parametrize("options", [{"tol": 1e-3, "per_sample": True}, {"tol": Rule(1e-3)}])
def test_samples_and_rules_are_left_alone(options: dict[str, Any]) -> None:
    """A sample that is lost never halts; to a rule NaN may mean anything."""
    found = solve(overflowing, torch.zeros(3, 4), state=F32, max_steps=9, **options)
    assert found.stats.steps == 9 and found.stats.result == "diverged"


def test_finite_runs_read_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Tensor:
        raise AssertionError("the state was searched")

    monkeypatch.setattr(residual, "nothing_finite", never)
    monkeypatch.setattr(stopping, "nothing_finite", never)
    z0 = torch.zeros(3, 4)
    assert solve(halved, z0, tol=1e-3, state=F32, max_steps=30).stats.result == "converged"
    for solver in SOLVERS:
        assert fixed_point(halved, z0, solver=solver).stats.result == "converged"
    with pytest.raises(AssertionError, match="searched"):
        solve(overflowing, z0, tol=1e-3, state=F32)
    with pytest.raises(AssertionError, match="searched"):
        fixed_point(overflowing, z0)
