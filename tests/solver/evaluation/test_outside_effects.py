"""What the evaluation that finds a computed tensor leaves behind: nothing."""

from __future__ import annotations

import functools
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.solver.cells import MLP, TwoMaps
from tests.solver.solving import inputs
from torch_revdeq import CaptureError, solve


class Watched(MLP):
    """Counts its calls in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.log = 0, []
        self.context: Any = None
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.loose = torch.zeros(3)

    def forward(self, z: Tensor, x: Tensor | None = None, counter: Any = None) -> Tensor:
        self.calls += 1
        self.log.append(z.shape)
        self.count += 1
        self.loose.data += 1
        if counter is not None:
            counter.add_(1)
        return super().forward(z, x if self.context is None else self.context)


def test_f_is_seen_to_run_as_often_as_with_hooks() -> None:
    x = inputs()
    for adjoint in ("auto", "hooks"):
        f = Watched()
        f.context = torch.sin(x)
        solution = solve(f, torch.zeros(6, 16), max_steps=3, adjoint=adjoint)
        assert solution.stats.adjoint == "hooks"
        solution.z.sum().backward()
        assert (f.calls, len(f.log), int(f.count), f.loose.tolist()) == (6, 6, 6, [6.0] * 3)


def test_what_f_holds_and_does_not_read_changes_nothing() -> None:
    x = inputs()
    f, counter = Watched(), torch.zeros(())
    f.unread = torch.sin(x)
    solution = solve(f, torch.zeros_like(x), x, counter, max_steps=3)
    assert solution.stats.adjoint == "reversible" and solution.stats.route == "solver"
    solution.z.sum().backward()
    assert (f.calls, int(f.count), f.loose.tolist(), float(counter)) == (6, 6, [6.0] * 3, 6.0)


def test_f_is_not_evaluated_where_it_holds_none() -> None:
    """Nor for what an evaluation of an earlier solve left on it."""
    calls = itertools.count()  # which nobody puts back

    class Leaves(TwoMaps):
        def forward(self, z: Tensor, x: Tensor) -> Any:
            next(calls)
            self.left = super().forward(z, x)
            return self.left

    f, x = Leaves(), inputs()
    for times in (0, 1):
        solve(f, torch.zeros_like(x), torch.sin(x), max_steps=2)
        assert next(calls) == 5 * times + 4


@pytest.mark.parametrize("reads", [True, False])
def test_a_large_tensor_is_written_once_for_each_evaluation(reads: bool) -> None:
    x, bank = inputs(), torch.zeros(2**17)
    f, encoded = MLP(), torch.sin(x)

    def writes(z: Tensor) -> Tensor:
        bank.add_(1)
        return f(z, encoded if reads else encoded.detach())

    solution = solve(writes, torch.zeros_like(x), max_steps=3)
    assert solution.stats.adjoint == ("hooks" if reads else "reversible")
    solution.z.sum().backward()
    assert bank.unique().tolist() == [6.0]


def test_a_frozen_parameter_that_f_writes_is_named() -> None:
    x, f = inputs(), MLP()
    encoded, teacher = torch.sin(x), nn.Linear(4, 4).requires_grad_(False)

    def writes(z: Tensor) -> Tensor:
        teacher.weight.add_(1)
        return f(z, encoded.detach())

    with pytest.raises(RuntimeError, match=r"^f: expected to write no frozen .*'weight' in Linear"):
        solve(writes, torch.zeros_like(x))
    solve(writes, torch.zeros_like(x), adjoint="reversible").z.sum().backward()


def _dropped(lazy: nn.Module, drop: nn.Module, encoded: Tensor, z: Tensor) -> Tensor:
    return drop(lazy(z)) + encoded


def test_the_weights_of_a_lazy_module_are_drawn_once() -> None:
    """The solve begins after them, with the bits that it has when f was called before."""
    x, found = inputs(), []
    for adjoint in ("auto", "backprop"):
        torch.manual_seed(0)
        lazy, drop, encoded = nn.LazyLinear(16, bias=False), nn.Dropout(0.3), torch.sin(x)
        f = functools.partial(_dropped, lazy, drop, encoded)
        if adjoint == "backprop":
            f(torch.zeros_like(x))
        z = solve(f, torch.zeros_like(x), adjoint=adjoint, max_steps=2).z
        found.append([z, *torch.autograd.grad(z.square().sum(), [x, lazy.weight]), torch.rand(3)])
    assert all(map(torch.equal, *found))


def test_after_a_lazy_module_random_numbers_are_others() -> None:
    x = inputs()
    torch.manual_seed(0)
    f, encoded = nn.LazyLinear(16, bias=False), torch.sin(x)
    assert solve(lambda z: f(z) + encoded, torch.zeros_like(x)).stats.adjoint == "hooks"
    assert not torch.equal(torch.empty(16, 16).uniform_(-0.25, 0.25), f.weight)


def test_statistics_of_lazy_normalization_count_each_evaluation_once() -> None:
    """In its first solve it is evaluated no more than that; from the next one on it is tried."""
    x, f = inputs(), nn.LazyBatchNorm1d()
    encoded = torch.sin(x)
    with pytest.raises(CaptureError):
        solve(lambda z: f(z) + encoded, torch.ones_like(x), max_steps=2)
    f = nn.LazyBatchNorm1d()
    unread = SimpleNamespace(of=encoded)
    z = solve(lambda z: f(z) + (0 if unread else 1), torch.ones_like(x), max_steps=2).z
    assert f.num_batches_tracked is not None and int(f.num_batches_tracked) == 4 and z.requires_grad
    assert solve(lambda z: f(z) + encoded, torch.ones_like(x)).stats.adjoint == "hooks"
