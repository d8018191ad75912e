"""Leaves that are frozen or unfrozen between the passes, where saved tensors are recomputed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_revdeq import solve

BY_SAVES = pytest.mark.parametrize("adjoint", ["hooks", "checkpoint"])


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(8, 8, bias=False) for _ in range(2))
        self.unread = nn.Linear(8, 8)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.3 * self.b(torch.tanh(self.a(z) + x))


@pytest.mark.parametrize(
    ("adjoint", "held"), [("checkpoint", False), ("checkpoint", True), ("hooks", True)]
)
def test_frozen_and_unfrozen_before_a_recomputation(adjoint: Any, held: bool) -> None:
    """f would save as many tensors of the same shapes, in another order."""
    f, x = Two(), torch.randn(8, 8)
    u, v = f.a.weight, f.b.weight

    def by_weights(z: Tensor, x: Tensor) -> Tensor:
        return 0.3 * torch.tanh(z @ u.t() + x) @ v.t()

    u.requires_grad_(False)
    z = solve(by_weights if held else f, torch.zeros(8, 8), x, max_steps=3, adjoint=adjoint).z
    u.requires_grad_(True)
    v.requires_grad_(False)
    name = "a tensor that f holds" if held else "'a.weight' in Two"
    with pytest.raises(RuntimeError, match=f"requires_grad of f's .* got a change of {name}; "):
        z.sum().backward()
    assert u.requires_grad and not v.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("change", ["frozen", "unfrozen"])
@BY_SAVES
def test_a_leaf_of_a_closure(adjoint: Any, change: str, dtype: torch.dtype) -> None:
    w = torch.ones(8, dtype=dtype).requires_grad_(change == "frozen")
    f = lambda z, x: torch.tanh(0.5 * (z * w).real + x)  # noqa: E731
    x = torch.ones(4, 8, requires_grad=True)
    z = solve(f, torch.zeros(4, 8), x, max_steps=3, adjoint=adjoint).z
    w.requires_grad_(change == "unfrozen")
    with pytest.raises(RuntimeError, match="requires_grad of f's parameters as in the forward"):
        z.sum().backward()


def test_a_parameter_that_f_does_not_read() -> None:
    f, x = Two(), torch.randn(8, 8)
    z = solve(f, torch.zeros(8, 8), x, adjoint="checkpoint").z
    f.unread.requires_grad_(False)
    z.sum().backward()
    assert f.a.weight.grad is not None


class Summing(Two):
    """Holds a sum of losses, which f does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.total = torch.zeros(())


@pytest.mark.parametrize("adjoint", ["backprop", "reversible", "hooks", "checkpoint"])
@pytest.mark.parametrize("place", ["attribute", "closure"])
def test_a_leaf_that_has_become_a_computed_tensor(place: str, adjoint: Any) -> None:
    module, sums = Summing(), [torch.zeros(())]

    def f(z: Tensor, x: Tensor) -> Tensor:
        return len(sums) * module(z, x)

    of_module = place == "attribute"
    x = torch.randn(8, 8, requires_grad=True)
    z = solve(module if of_module else f, torch.zeros(8, 8), x, max_steps=3, adjoint=adjoint).z
    total = module.total if of_module else sums[0]
    total += z.square().mean()
    total.backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@BY_SAVES
def test_the_leaves_are_left_alone(adjoint: Any) -> None:
    """Another thread may evaluate f meanwhile: a frozen parameter must not get a gradient there."""
    module, seen = Two(), list[bool]()
    started, done = threading.Event(), threading.Event()

    def f(z: Tensor, x: Tensor) -> Tensor:
        if going_back:
            started.set()
            done.wait(5)
        return module(z, x)

    def other() -> None:
        started.wait(5)
        module(x, x).sum().backward()
        seen.append(module.b.weight.grad is None)
        done.set()

    going_back, x = False, torch.randn(8, 8)
    z = solve(f, torch.zeros(8, 8), x, max_steps=3, adjoint=adjoint).z
    module.b.weight.requires_grad_(False)
    going_back = True
    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(RuntimeError, match=r"requires_grad of f's .* 'b\.weight' in Two"):
        z.sum().backward()
    started.set()
    thread.join()
    assert seen == [True]
