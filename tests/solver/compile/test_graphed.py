"""A solve while a CUDA graph is captured: what is refused, and what is read when. Without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.solver.cells import MLP
from torch_revdeq import RangeError, ReconstructionError, RevDEQ, graphed, solve
from torch_revdeq.adjoints import problem, reconstruction
from torch_revdeq.runtime import cuda_graphs, deferred, host_copy
from torch_revdeq.runtime.deferred import deferred_checks

FIXED: dict[str, Any] = {"frac_bits": 18, "rng": "none"}

REFUSED = {
    "max_steps": ({"max_steps": lambda: 4}, "max_steps: expected an integer while a CUDA graph"),
    "tol": ({"tol": 1e-3}, "tol: expected None while a CUDA graph is captured, got 0.001"),
    "frac_bits": ({"frac_bits": "auto"}, "frac_bits: expected an integer for an exact state"),
    "rng": ({"rng": "auto"}, "rng: expected 'none' while a CUDA graph is captured, got 'auto'"),
}


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The solver believes that the CPU is a GPU whose work goes into a graph."""
    solver = sys.modules["torch_revdeq.solver"]  # the name is that of a function too
    for module in (solver, host_copy, deferred, cuda_graphs):
        monkeypatch.setattr(module, "capturing", lambda device: True)
    for module in (deferred, problem, reconstruction):
        monkeypatch.setattr(module, "deferred", lambda device: True)
    yield
    assert not deferred_checks.waiting


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_cannot_hold_is_refused_in_a_capture(name: str) -> None:
    options, message = REFUSED[name]
    x = torch.randn(4, 16)
    with pytest.raises(ValueError, match=message):
        solve(MLP(), x, x, **{**FIXED, **options})


@pytest.mark.parametrize("name", REFUSED)
def test_and_before_it(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        graphed(RevDEQ(MLP(), **{**FIXED, **options}), torch.randn(4, 16))


def test_a_float_state_has_no_bits_to_fix() -> None:
    """It gets as far as the device."""
    for state, dtype in ((torch.float32, torch.float32), ("auto", torch.float64)):
        layer = RevDEQ(MLP().to(dtype), rng="none", state=state)
        with pytest.raises(ValueError, match="samples: expected tensors on a CUDA device"):
            graphed(layer, torch.randn(4, 16, dtype=dtype))


def test_it_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="samples: expected an example input"):
        graphed(RevDEQ(MLP(), **FIXED))


@pytest.mark.usefixtures("captured")
def test_checks_are_read_when_they_are_asked_for() -> None:
    """And not before: what they are about is there after a replay."""
    f, x = MLP(), torch.randn(4, 16)
    good = solve(f, x * 0, x, **FIXED)
    bad = solve(f, x * 0, x, **FIXED)
    good.z.sum().backward()
    good.verify()
    for parameter in f.parameters():
        parameter.grad = None
    f.a.weight.data.mul_(1.5)
    bad.z.sum().backward()
    assert all(p.grad is not None and p.grad.isnan().all() for p in f.parameters())
    for _ in range(2):
        with pytest.raises(ReconstructionError):
            bad.stats.verify()
    far = solve(lambda z: z * 40.0, torch.ones(4), max_steps=30, frac_bits=20, rng="none")
    assert far.z.isnan().all()
    with pytest.raises(RangeError):
        far.verify()


@pytest.mark.usefixtures("captured")
def test_the_outcome_of_a_check_is_that_of_the_last_replay() -> None:
    f, x = MLP(), torch.randn(4, 16)
    solution = solve(f, x * 0, x, **FIXED)
    (check,) = solution.stats._pending  # of the range
    solution.verify()
    check.failed.fill_(True)  # as a replay writes it
    with pytest.raises(RangeError):
        solution.verify()
    check.failed.fill_(False)
    solution.verify()
