"""What a solve says of itself: how it ended, numbers for a logger, a repr, copies."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.solver.cell.linear_layers import inputs, layer, one_op
from tests.solver.cells import cell_and_input
from torch_revdeq import FixedPointStats, Picard, Stats, StoppingRule, fixed_point, solve
from torch_revdeq.iteration.stopping import Stopping

F32 = torch.float32


def scaled(z: Tensor, rate: float | Tensor) -> Tensor:
    return rate * z


ONES = torch.ones(4, 3)

# ---- how it ended --------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint", "backprop"])
@pytest.mark.parametrize(
    ("rate", "options", "result"),
    [
        (0.5, {"tol": 1e-3}, "max_steps"),
        (0.5, {}, "max_steps"),
        (1.0, {"tol": 1e-3}, "converged"),
        (1.0, {}, "max_steps"),
        (1.0, {"tol": 1e-3, "max_steps": 1}, "converged"),
        (1e5, {"max_steps": 30, "check": False}, "diverged"),
        (1e5, {"max_steps": 30, "check": False, "tol": 1e-3}, "diverged"),
        (1e5, {"max_steps": 30, "check": False, "tol": 1e-3, "per_sample": True}, "diverged"),
        (math.nan, {"tol": 1e-3, "check": False}, "diverged"),
    ],
)
def test_how_a_solve_ended(rate: float, options: Any, result: str, adjoint: Any) -> None:
    stats = solve(scaled, ONES, rate, state=F32, adjoint=adjoint, **options).stats
    assert stats.result == result
    assert stats.converged == (None if "tol" not in options else result == "converged")
    found = stats.as_dict()
    assert found["diverged"] == (result == "diverged")
    assert found.get("converged", 0) == (result == "converged")


def test_one_sample_that_diverges_is_enough() -> None:
    rates = torch.tensor([1.0, 1e5, 1.0, 1.0])[:, None]
    options: dict[str, Any] = {"state": F32, "tol": 1e-3, "per_sample": True, "max_steps": 30}
    stats = solve(scaled, ONES, rates, **options).stats
    assert stats.result == "diverged" and not stats.converged
    assert stats.sample_steps is not None and stats.sample_steps.tolist() == [1, 30, 1, 1]
    assert stats.as_dict()["mean_steps"] == 33 / 4


def test_a_solve_that_stopped_at_tol_has_converged_whatever_the_step_after_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a device the decision waits for one check more, at which the residual may be above."""

    class Rising(StoppingRule):
        calls = 0

        def residual(self, y: Any, f: Any) -> Tensor:
            self.calls += 1
            return torch.tensor(0.5 if self.calls == 2 else 2.0)

    begin = Stopping.__init__

    def late(self: Stopping, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        self.lag = 1

    monkeypatch.setattr(Stopping, "__init__", late)
    stats = solve(scaled, ONES, 0.5, tol=Rising(1.0), max_steps=8).stats
    assert stats.steps == 3 and stats.residual == 2.0
    assert stats.converged and stats.result == "converged"
    last = solve(scaled, ONES, 0.5, tol=Rising(1.0), max_steps=3).stats
    assert last.steps == 3 and not last.converged and last.result == "max_steps"


@one_op
def test_one_op_for_all_steps(implementation: str) -> None:
    """Without a tol it measures nothing."""
    plain = layer(implementation)
    plain(inputs())
    assert plain.stats is not None and plain.stats.result is None
    assert "residual" not in plain.stats.as_dict() and "residual" not in repr(plain.stats)
    halting = layer(implementation, tol=1e-2, per_sample=True, max_steps=60)
    halting(inputs())
    assert halting.stats is not None and halting.stats.result == "converged"
    assert halting.stats.as_dict()["mean_steps"] <= halting.stats.steps


# ---- numbers for a logger, and a repr ------------------------------------------------------------


def test_numbers_for_a_logger() -> None:
    f, x = cell_and_input("mlp")
    solution = solve(f, torch.zeros_like(x), x, tol=1e-2, max_steps=30)
    found = solution.stats.as_dict("deq/")
    names = ["steps", "nfe", "residual", "converged", "diverged", "state_bytes"]
    assert [*found] == [f"deq/{name}" for name in names]
    assert all(type(value) in (int, float) for value in found.values())
    assert found["deq/converged"] == 1 and found["deq/nfe"] == 2 * solution.stats.steps
    solution.z.sum().backward()
    assert solution.stats.as_dict()["reconstruction_error"] == 0.0
    assert "converged" not in solve(f, torch.zeros_like(x), x).stats.as_dict()


def test_a_repr_says_what_there_is_to_read() -> None:
    f, x = cell_and_input("mlp")
    solution = solve(f, torch.zeros_like(x), x)
    residual = solution.stats.residual
    text = f"Stats(steps=8, residual={residual:.4g}, result='max_steps', state='exact', "
    assert repr(solution.stats).startswith(text)
    assert "frac_bits=20, adjoint='reversible', state_bytes=" in repr(solution.stats)
    assert repr(solution.stats).endswith(", route='solver')")
    solution.z.sum().backward()
    assert "result='max_steps', reconstruction_error=0, state=" in repr(solution.stats)
    assert repr(solution.stats) in repr(solution)


def test_a_repr_reads_nothing_from_a_device() -> None:
    """The meta device has nothing to read, and raises."""
    there = torch.zeros((), device="meta")
    stats = Stats(there, "exact", "reversible", 64, 20, 1e-3, _residual=lambda: there)
    text = repr(stats)
    assert text.startswith("Stats(steps=<on meta>, residual=<on meta>, tol=0.001, state='exact'")
    with pytest.raises(RuntimeError):
        stats.residual  # noqa: B018


# ---- copies --------------------------------------------------------------------------------------


def test_copies_and_pickles_have_numbers() -> None:
    f, x = cell_and_input("mlp")
    options: dict[str, Any] = {"tol": 1e-2, "per_sample": True, "max_steps": 30, "trace": True}
    solution = solve(f, torch.zeros_like(x), x, **options, on_step=lambda *_: None)
    solution.z.sum().backward()
    stats = solution.stats
    for twin in (copy.deepcopy(stats), pickle.loads(pickle.dumps(stats)), copy.copy(stats)):
        assert repr(twin) == repr(stats) and twin.as_dict() == stats.as_dict()
        assert twin.residuals is not None and stats.residuals is not None
        assert torch.equal(twin.residuals, stats.residuals) and twin.result == "converged"


def test_statistics_that_an_earlier_version_pickled() -> None:
    f, x = cell_and_input("mlp")
    stats = solve(f, torch.zeros_like(x), x, tol=1e-2).stats
    state = stats.__getstate__()
    del state["_residuals"], state["_stopped"]
    old = Stats.__new__(Stats)
    old.__dict__.update(state)
    assert old.residuals is None and old.result == stats.result and repr(old) == repr(stats)


# ---- of a limit ----------------------------------------------------------------------------------


def test_a_limit_says_the_same_of_itself() -> None:
    f, x = cell_and_input("mlp")
    limit = fixed_point(f, torch.zeros_like(x), x)
    assert limit.stats.result == "converged"
    limit.z.sum().backward()
    found = limit.stats.as_dict("limit/")
    assert found["limit/converged"] == 1 and found["limit/diverged"] == 0
    assert all(type(value) in (int, float) for value in found.values())
    assert found["limit/adjoint_steps"] == limit.stats.adjoint_steps
    assert repr(limit.stats).startswith(f"FixedPointStats(steps={limit.stats.steps}, nfe=")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it ended above tol
        ends = [
            fixed_point(scaled, ONES, rate, solver=Picard(), max_steps=40).stats.result
            for rate in (-1.0, 1e5)
        ]
    assert ends == ["max_steps", "diverged"]
    assert "adjoint" not in repr(FixedPointStats(1, 1, 0.5, False))
