"""``store_last``: the same gradients, f evaluated less often, memory as asked for."""

from __future__ import annotations

import weakref
from array import array
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.solver.cells import cell_and_input
from tests.solver.memory import HIDDEN, STATE, peak
from tests.tolerances import gradient_bound, reconstruction_bound
from torch_revdeq import ReconstructionError, solve


@pytest.mark.parametrize("state", ["exact", torch.float32, torch.float64], ids=str)
def test_as_without(state: Any) -> None:
    """A float state differs by what its reconstruction loses, which the graphs do not meet."""
    f, x = cell_and_input("tied")
    beta = torch.tensor(0.6, requires_grad=True)

    def gradients(count: int) -> tuple[Tensor, ...]:
        solution = solve(f, x, x, beta=beta, max_steps=4, state=state, store_last=count)
        loss = solution.z.square().sum() + solution.y.sum()
        first = torch.autograd.grad(loss, [x, beta, *f.parameters()], retain_graph=True)
        second = torch.autograd.grad(loss, [x, beta, *f.parameters()])
        assert all(map(torch.equal, first, second))
        return first

    bound = 0.0
    if state != "exact":
        # f is in float32; constants as in test_gradients.py.
        back = reconstruction_bound(state, 0.6, 4, lipschitz=2.0, magnitude=4.0)
        bound = gradient_bound(torch.float32, back, 4, curvature=2.0, terms=64)
    for got, want in zip(gradients(3), gradients(0), strict=True):
        assert (got - want).abs().max() <= bound * want.abs().max()


@pytest.mark.parametrize(("count", "again"), [(0, 12), (4, 8), (12, 0), (50, 0)])
def test_f_is_evaluated_less_often(count: int, again: int) -> None:
    f, x = cell_and_input("mlp")
    calls = array("b")  # a list that f holds would be put back
    f.register_forward_pre_hook(lambda *_: calls.append(1))
    z = solve(f, torch.zeros_like(x), x, max_steps=6, store_last=count).z
    assert len(calls) == 12
    z.sum().backward()
    assert len(calls) == 12 + again


def test_with_a_tol_it_is_the_last_steps_taken() -> None:
    torch.manual_seed(0)
    calls = array("b")  # a list that f holds would be put back
    x = torch.randn(64, requires_grad=True)

    def f(z: Tensor, x: Tensor) -> Tensor:
        calls.append(1)
        return 0.5 * torch.tanh(z) + x

    solution = solve(f, torch.zeros(64), x, max_steps=50, tol=1e-4, store_last=6)
    taken = 2 * solution.stats.steps
    assert len(calls) == taken < 100
    solution.z.sum().backward()
    assert len(calls) == 2 * taken - 6


def test_memory_grows_by_what_is_kept() -> None:
    """What tanh saves; the state and f's value come on top."""
    none, four, six = (peak(16, store_last=count) for count in (0, 4, 6))
    assert four - none <= 6 * HIDDEN and 2 * HIDDEN <= six - four <= 3 * HIDDEN


@pytest.mark.parametrize("graphs", [0, 2, 6])
def test_auto_keeps_within_the_budget(graphs: int) -> None:
    budget = graphs * (HIDDEN + STATE) + 100
    growth = peak(16, store_last="auto", memory_budget=budget) - peak(16)
    assert growth <= 1.3 * budget + 4 * STATE
    if graphs > 2:  # without any, the way back holds one or two at a time
        assert growth >= 0.5 * budget


def test_a_changed_parameter_is_noticed() -> None:
    f, x = cell_and_input("mlp")
    z = solve(f, x, x, store_last=2).z
    next(f.parameters()).data.add_(0.1)
    with pytest.raises(ReconstructionError):
        z.sum().backward()


def test_no_graph_outlives_the_backward_pass() -> None:
    """Nor those that a truncated one does not come to."""
    f, x = cell_and_input("mlp")
    seen: list[Any] = []
    f.register_forward_hook(lambda _, inputs, out: seen.append(weakref.ref(out)))
    z = solve(f, torch.zeros_like(x), x, max_steps=6, store_last=10, backward_steps=2).z
    assert any(ref() is not None for ref in seen)
    z.sum().backward()
    assert all(ref() is None for ref in seen)
