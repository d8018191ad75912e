"""f returns the same values on the way back, by another graph of autograd: it raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.solver.adjoints.evaluated_again import ADJOINTS, F64, Cell, options_of
from torch_revdeq import ReconstructionError, solve


class Stopped(Cell):
    """A part of its gradient is stopped, while a flag says so."""

    stop = True

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h = super().forward(z, x)
        return 0.5 * h + 0.5 * (h.detach() if self.stop else h)


class Task(Cell):
    """Adds a row of a table that starts as zeros: which one is a number, in no tensor."""

    task = 0

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(9, 8))

    def read(self) -> Tensor:
        return self.table[self.task]

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return super().forward(z, x) + self.read()


class Sliced(Task):
    def read(self) -> Tensor:
        return self.table[self.task : self.task + 2].sum(0)


class Summed(Task):
    """A sum over another dimension of an operand that is square and constant."""

    def read(self) -> Tensor:
        return torch.outer(torch.ones(8), self.table[0]).sum(self.task)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize(
    ("make", "task", "other"),
    # Of 7 and the last index, torch keeps numbers with the same hash.
    [(Task, 1, 2), (Task, 7, -1), (Sliced, 1, 2), (Summed, 0, 1)],
)
def test_another_part_of_a_tensor_with_the_same_values(
    make: Callable[[], Task], task: int, other: int, adjoint: str
) -> None:
    f, x = make(), torch.randn(8, 8)
    f.task = task
    z = solve(f, torch.zeros(8, 8), x, **options_of(adjoint)).z
    f.task = other
    with pytest.raises(RuntimeError, match="f: expected to run the same operations"):
        z.square().sum().backward()
    f.task = task
    solve(f, torch.zeros(8, 8), x, **options_of(adjoint)).z.square().sum().backward()


class Scaled(Cell):
    factor = 0.6

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.factor * super().forward(z, x)


@pytest.mark.parametrize("options", [{}, {"backward_steps": 2}, {"compile": True}])
@pytest.mark.parametrize("later", [0.6, 0.3])
def test_a_second_derivative_of_another_f(later: float, options: dict[str, Any]) -> None:
    """It stores the graphs of a solve that is run again."""
    f, x = Scaled(), torch.randn(4, 8, requires_grad=True)
    z = solve(f, torch.zeros(4, 8), x, max_steps=4, state=F64, **options).z
    f.factor = later
    if later == 0.6:
        torch.autograd.grad(z.sum(), x, create_graph=True)
        return
    with pytest.raises(RuntimeError, match="f: expected to return the same values"):
        torch.autograd.grad(z.sum(), x, create_graph=True)


class Sided(nn.Module):
    """Two products of the same shapes, of which one takes no gradient to the state."""

    stop = False

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(8, 8, bias=False) for _ in range(2))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        p, q = (z.detach(), z) if self.stop else (z, z.detach())
        return 0.3 * torch.tanh(self.a(p) + self.b(q)) + x


class Paired(Cell):
    """Two equal outputs of one operation, unlike in their gradients, exchanged by a flag."""

    exchanged = False

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h = super().forward(z, x)
        p, q = torch.stack((h, 0.5 * h + 0.5 * h.detach())).unbind()
        if self.exchanged:
            p, q = q, p
        return 0.25 * p + 0.5 * q


class PairReturned(Cell):
    """The same, of which each is a leaf of the state."""

    exchanged = False

    def forward(self, z: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        h = super().forward(z["a"] + z["b"], x)
        p, q = torch.stack((0.3 * h, 0.3 * h.detach())).unbind()
        if self.exchanged:
            p, q = q, p
        return {"a": p, "b": q}


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("kind", [Paired, PairReturned])
def test_outputs_of_one_operation_that_are_exchanged(
    kind: type[Cell], adjoint: str, exchanged: bool
) -> None:
    f, x = kind(), torch.randn(4, 8)
    one = kind is Paired
    z0: Any = torch.zeros(4, 8) if one else {"a": torch.zeros(4, 8), "b": torch.zeros(4, 8)}
    z: Any = solve(f, z0, x, **options_of(adjoint)).z
    loss = (z if one else z["a"]).square().sum()
    f.exchanged = exchanged  # type: ignore[assignment]
    if not exchanged:
        loss.backward()
        return
    with pytest.raises(RuntimeError, match="f: expected to run the same operations"):
        loss.backward()


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("kind", [Stopped, Sided])
def test_a_flag_that_changed_before_backward(kind: type[nn.Module], adjoint: str) -> None:
    """Saved tensors could reach other nodes than those that saved them."""
    f, x = kind(), torch.randn(8, 8)
    f.stop = True  # type: ignore[assignment]
    z = solve(f, torch.zeros(8, 8), x, **options_of(adjoint)).z
    f.stop = False  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="f: expected to run the same operations"):
        z.square().sum().backward()


@pytest.mark.parametrize("adjoint", ["reversible", "functional"])
@pytest.mark.parametrize("change", ["added", "removed"])
def test_hooks_of_modules_between(change: str, adjoint: str) -> None:
    f, x = Cell(), torch.randn(4, 8)
    double = lambda module, before, grads: tuple(2 * g for g in before)  # noqa: E731
    handle = f.of_z.register_full_backward_hook(double) if change == "removed" else None
    z = solve(f, torch.zeros(4, 8), x, **options_of(adjoint)).z
    if handle is None:
        f.of_z.register_full_backward_hook(double)
    else:
        handle.remove()
    with pytest.raises(RuntimeError, match="f: expected to run the same operations"):
        z.square().sum().backward()


@pytest.mark.parametrize("store_last", [0, 1, 4])
def test_a_leaf_that_was_replaced(store_last: int) -> None:
    held = {"w": torch.ones(8, requires_grad=True)}
    f = lambda z, x: torch.tanh(0.5 * z * held["w"] + x)  # noqa: E731
    z = solve(f, torch.zeros(4, 8), torch.ones(4, 8), max_steps=4, store_last=store_last).z
    held["w"] = held["w"].detach().clone().requires_grad_()
    with pytest.raises(RuntimeError, match="f: expected to read the same tensors in"):
        z.sum().backward()


def test_a_parameter_that_is_read_instead_of_another_is_named() -> None:
    f = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    f["b"].load_state_dict(f["a"].state_dict())
    used = ["a"]

    def g(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.3 * f[used[0]](z) + x)

    z = solve(g, torch.zeros(4, 8), torch.randn(4, 8)).z
    used[0] = "b"
    with pytest.raises(RuntimeError, match=r"read the same .*, got 'b\.\w+' in ModuleDict in the"):
        z.sum().backward()


def test_a_frozen_parameter_that_was_changed_is_named() -> None:
    f, x = Cell(), torch.randn(4, 8)
    f.of_z.weight.requires_grad_(False)
    z = solve(f, torch.zeros(4, 8), x).z
    with torch.no_grad():
        f.of_z.weight.mul_(1.1)
    with pytest.raises(ReconstructionError, match=r"written since: 'of_z\.weight' in Cell"):
        z.sum().backward()


def test_a_leaf_of_one_step_that_was_replaced() -> None:
    held = {"w": torch.ones(8, requires_grad=True)}

    def f(z: Tensor, x: Tensor, step: int) -> Tensor:
        return torch.tanh(0.5 * z + x + (held["w"] if step == 0 else 1.0))

    z = solve(f, torch.zeros(4, 8), torch.ones(4, 8), max_steps=4, pass_step=True).z
    held["w"] = held["w"].detach().clone().requires_grad_()
    with pytest.raises(RuntimeError, match="f: expected to read the same tensors in"):
        z.sum().backward()
