"""A solve inside f: it makes the same graph where f is evaluated again, on other tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_revdeq import solve

F64 = torch.float64


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of_z, self.of_x = nn.Linear(8, 8), nn.Linear(8, 8)
        self.unread = nn.Parameter(torch.zeros(2, 8))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.3 * self.of_z(z) + self.of_x(x))


class Inner(nn.Module):
    """A solve inside f, of a module with a parameter that it does not read."""

    def __init__(self, adjoint: Any) -> None:
        super().__init__()
        self.cell: Cell = Cell()
        self.adjoint: Any = adjoint

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        state: Any = F64 if self.adjoint == "functional" else "auto"
        return 0.5 * solve(self.cell, z, x, adjoint=self.adjoint, max_steps=2, state=state).z


@pytest.mark.parametrize("inner", ["auto", "reversible", "hooks", "checkpoint", "backprop"])
@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint", "functional"])
def test_an_unread_parameter(adjoint: Any, inner: Any) -> None:
    """The same graph in both passes, though f's parameters are leaves in one of them only."""
    f, x = Inner(inner), torch.randn(4, 8, dtype=F64, requires_grad=True)
    f.double()
    wanted = [x, *f.cell.of_z.parameters(), *f.cell.of_x.parameters()]
    options: dict[str, Any] = {"max_steps": 4, "state": F64}
    found = []
    for name in ("backprop", adjoint):
        z = solve(f, torch.zeros(4, 8, dtype=F64), x, adjoint=name, **options).z
        found.append(torch.autograd.grad(z.square().sum(), wanted))
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want)  # the inner states are rounded where they are exact


class Stopped(Cell):
    """A part of its gradient is stopped, while a flag says so."""

    stop = True

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h = super().forward(z, x)
        return 0.5 * h + 0.5 * (h.detach() if self.stop else h)


@pytest.mark.parametrize("inner", ["auto", "hooks", "checkpoint", "functional"])
@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint", "functional"])
def test_another_inner_f_with_the_same_values(adjoint: Any, inner: Any) -> None:
    """The graph of the outer f has one node for an inner solve, or all of its evaluations."""
    f, x = Inner(inner), torch.randn(4, 8, dtype=F64, requires_grad=True)
    f.cell = cell = Stopped()
    f.double()
    z0 = torch.zeros(4, 8, dtype=F64)
    solved = solve(f, z0, x, adjoint=adjoint, max_steps=4, state=F64)
    cell.stop = False
    with pytest.raises(RuntimeError, match="f: expected to run the same operations"):
        torch.autograd.grad(solved.z.sum(), x)


@pytest.mark.parametrize("given", ["leaves", "computed", "computed in f"])
@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint"])
def test_weights_from_arguments(adjoint: Any, given: str) -> None:
    """The same, for weights that f puts into a module."""
    inner, scale = Inner("reversible"), torch.ones((), requires_grad=True)
    own = dict(inner.named_parameters())

    def f(z: Tensor, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        if given == "computed in f":
            weights = weights | {"cell.of_z.bias": 2 * weights["cell.of_z.bias"]}
        return torch.func.functional_call(inner, weights, (z, x))

    weights = own if given == "leaves" else {name: scale * p for name, p in own.items()}
    x, read = torch.randn(4, 8), [p for name, p in own.items() if name != "cell.unread"]
    found = [
        torch.autograd.grad(
            solve(f, torch.zeros(4, 8), x, weights, max_steps=4, adjoint=a).z.sum(),
            read,
            retain_graph=True,
        )
        for a in ("backprop", adjoint)
    ]
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want)  # summed in another order


@pytest.mark.parametrize("middle", ["reversible", "hooks", "checkpoint"])
@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint", "functional"])
def test_a_solve_inside_a_solve_inside_f(adjoint: Any, middle: Any) -> None:
    inner, scale = Inner("reversible").double(), torch.ones((), dtype=F64, requires_grad=True)
    own = dict(inner.named_parameters())

    def g(z: Tensor, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(inner, weights, (z, x))

    def f(z: Tensor, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return 0.5 * solve(g, z, x, weights, max_steps=2, adjoint=middle, state=F64).z

    weights = {name: scale * p for name, p in own.items()}
    z0, x = torch.zeros(2, 4, 8, dtype=F64)
    options: dict[str, Any] = {"max_steps": 2, "state": F64}
    found = [
        torch.autograd.grad(
            solve(f, z0, x, weights, adjoint=a, **options).z.sum(), scale, retain_graph=True
        )[0]
        for a in ("backprop", adjoint)
    ]
    torch.testing.assert_close(found[1], found[0])  # the innermost state is rounded
