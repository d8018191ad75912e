"""FlopCounterMode around a training step counts it, and changes nothing of it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.solver.cells import MLP
from torch_revdeq import fixed_point, solve

STEPS = 3
# Evaluations of f, in their matrix products: one costs 1, its derivative 2.
FORWARD, AGAIN, BACKWARD = 2 * STEPS, 2 * STEPS, 4 * STEPS
COUNTS: dict[str, tuple[dict[str, Any], int]] = {
    "reversible": ({}, FORWARD + AGAIN + BACKWARD),
    "float": ({"state": torch.float32}, FORWARD + AGAIN + BACKWARD),
    "store_last": ({"store_last": 2}, FORWARD + AGAIN - 2 + BACKWARD),
    "functional": (
        {"adjoint": "functional", "state": torch.float32},
        FORWARD + AGAIN + BACKWARD,
    ),
    "hooks": ({"adjoint": "hooks"}, FORWARD + AGAIN + BACKWARD),
    "checkpoint": ({"adjoint": "checkpoint"}, FORWARD + AGAIN + BACKWARD),
    "backprop": ({"adjoint": "backprop"}, FORWARD + BACKWARD),
}


@pytest.mark.parametrize("name", COUNTS)
def test_forward_and_backward_are_counted(name: str) -> None:
    options, evaluations = COUNTS[name]
    f = MLP()
    x, z0 = torch.randn(6, 16, requires_grad=True), torch.randn(6, 16, requires_grad=True)

    def gradients() -> list[torch.Tensor | None]:
        for tensor in (x, z0, *f.parameters()):
            tensor.grad = None
        solve(f, z0, x, max_steps=STEPS, **options).z.square().sum().backward()
        return [tensor.grad for tensor in (x, z0, *f.parameters())]

    with FlopCounterMode(display=False) as mode:
        got = gradients()
    assert mode.get_total_flops() == evaluations * 2 * 2 * 6 * 16 * 32
    for a, b in zip(got, gradients(), strict=True):
        assert a is not None and b is not None and torch.equal(a, b)


@pytest.mark.parametrize("adjoint", ["reversible", "functional"])
def test_many_gradients_and_a_sparse_argument(adjoint: Any) -> None:
    class Graph(nn.Module):
        def forward(self, z: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
            return torch.tanh(edges @ z)

    edges = torch.rand(4, 4).to_sparse().requires_grad_()
    z0 = torch.randn(4, 3, requires_grad=True)
    found = []
    for mode in (FlopCounterMode(display=False), nullcontext()):
        with mode:
            z = solve(Graph(), z0, edges, adjoint=adjoint, state=torch.float32, max_steps=2).z
            # z0 itself does not come to the module: of a leaf that does torch cannot say.
            one = torch.autograd.grad(z.sum(), [z0, edges], retain_graph=True)
            found.append([one[0], one[1].to_dense()])
            if adjoint == "functional":
                rows = torch.ones(2, *z.shape)
                found[-1] += torch.autograd.grad(z, z0, rows, is_grads_batched=True)
    assert all(map(torch.equal, *found))


def test_a_limit() -> None:
    f, x = nn.Linear(16, 16), torch.randn(4, 16, requires_grad=True)
    with torch.no_grad():
        f.weight.mul_(0.3)
    with FlopCounterMode(display=False) as mode:
        solution = fixed_point(lambda z, x: torch.tanh(f(z) + x), torch.zeros(4, 16), x)
        forward = mode.get_total_flops()
        solution.z.sum().backward()
    assert mode.get_total_flops() > forward > 0
    assert x.grad is not None
