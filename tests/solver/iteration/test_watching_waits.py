"""``trace`` and ``on_step`` wait for no device, and have no part in a backward pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.solver.cells import MLP
from tests.solver.iteration.watched import ADJOINTS, CASES, F32, problem
from torch_revdeq import RevDEQ, Solution, graphed, solve
from torch_revdeq.runtime import cuda_graphs, deferred, host_copy


class Reads(TorchDispatchMode):
    """Counts what the host reads of tensors."""

    WAITS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "_unique2", "item")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().split("::")[1].split(".")[0] in self.WAITS
        return func(*args, **(kwargs or {}))


def reads(act: Callable[[], Any]) -> int:
    with Reads() as mode:
        act()
    return mode.count


def test_reads_are_counted() -> None:
    assert reads(lambda: (float(torch.ones(())), bool(torch.ones(2).any()))) == 2


@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_for_a_trace(case: str) -> None:
    """No more is read of any tensor than without one; the statistics read nothing, nor their repr.

    ``on_step`` reads no more either, beside the state of the generator.
    """
    f, x, options = problem(case)
    solved = partial(solve, f, torch.zeros_like(x), x, **options)
    solved()
    plain = reads(solved)
    assert reads(partial(solved, trace=True)) == plain
    assert reads(partial(solved, on_step=lambda *_: None)) == plain
    stats = solved(trace=True).stats
    assert reads(lambda: stats.residuals) == 0


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The solver believes that the CPU is a GPU whose work goes into a graph."""
    solver = sys.modules["torch_revdeq.solver"]
    problems = sys.modules["torch_revdeq.adjoints.problem"]
    reconstruction = sys.modules["torch_revdeq.adjoints.reconstruction"]
    for module in (solver, host_copy, deferred, cuda_graphs):
        monkeypatch.setattr(module, "capturing", lambda device: True)
    for module in (deferred, problems, reconstruction):
        monkeypatch.setattr(module, "deferred", lambda device: True)


@pytest.mark.usefixtures("captured")
def test_in_a_capture_nothing_is_read_and_a_replay_shows() -> None:
    """The residuals are made of what lies in the graph's memory, as a replay leaves it."""
    f, x, _ = problem("all steps")
    options: dict[str, Any] = {"frac_bits": 18, "rng": "none", "trace": True, "max_steps": 3}
    found: list[Solution] = []
    assert reads(lambda: found.append(solve(f, x * 0, x, **options))) == 0
    stats: Any = found[0].stats
    want = stats.residuals
    rows = stats._residuals.args[0]
    rows[1][0].mul_(torch.tensor([3.0, 1.0]))  # as a replay writes it
    got = stats.residuals
    assert got[1] == 3 * want[1] and torch.equal(got[::2], want[::2])
    with pytest.raises(ValueError, match="on_step: expected None while a CUDA graph is captured"):
        solve(f, x * 0, x, **options, on_step=print)


def test_and_a_layer_is_not_captured_with_a_function() -> None:
    layer = RevDEQ(MLP(), frac_bits=18, rng="none", on_step=print)
    with pytest.raises(ValueError, match=r"on_step: expected None .* a replay does not call it"):
        graphed(layer, torch.randn(4, 16))


@pytest.mark.parametrize("adjoint", [*ADJOINTS, "functional"])
@pytest.mark.parametrize("order", [1, 2])
def test_a_backward_pass_is_not_watched(adjoint: str, order: int) -> None:
    f, x, _ = problem("float32")
    calls: list[int] = []
    options: dict[str, Any] = {"state": F32, "adjoint": adjoint, "max_steps": 4, "check": False}
    watched: dict[str, Any] = {"trace": True, "on_step": lambda n, r, z: calls.append(n)}
    solution = solve(f, x * 0, x, **options, **watched)
    before = solution.stats.residuals
    loss = solution.z.square().sum()
    (first,) = torch.autograd.grad(loss, x, create_graph=order == 2, retain_graph=True)
    (first if order == 2 else loss).square().sum().backward()
    after = solution.stats.residuals
    assert calls == [1, 2, 3, 4]
    assert before is not None and after is not None and torch.equal(before, after)


def test_functional_and_no_grad() -> None:
    f, x, _ = problem("float32")
    options: dict[str, Any] = {"state": F32, "trace": True}
    want = solve(f, x * 0, x, **options).stats.residuals
    seen: list[Any] = []
    watched: dict[str, Any] = {**options, "on_step": lambda n, r, z: seen.append((n, r, z))}
    for adjoint in ("functional", "reversible", "backprop"):
        with torch.set_grad_enabled(adjoint != "backprop"):
            seen.clear()
            solution = solve(f, x * 0, x, adjoint=adjoint, **watched)
        assert solution.stats.residuals is not None and want is not None
        assert torch.allclose(solution.stats.residuals, want, rtol=1e-4)
        assert [n for n, _, _ in seen] == [*range(1, 9)]
        assert torch.equal(torch.stack([r for _, r, _ in seen]), solution.stats.residuals)
        assert torch.equal(seen[-1][2], solution.z)
        assert not any(r.requires_grad or z.requires_grad for _, r, z in seen)
