"""A beta that learns, also beside test_gradients.py: of several leaves, and of channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.solver.cells import cell_and_input
from torch_revdeq import solve
from torch_revdeq.testing import assert_exact_gradients


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
def test_a_learned_beta_of_several_leaves_has_the_bits_of_backprop(adjoint: Any) -> None:
    """Their parts are added up in the order in which autograd meets them."""

    def f(z: list[Tensor], x: Tensor) -> list[Tensor]:
        h = torch.tanh(z[0] + x)
        return [h, torch.tanh(z[1] + h.mean(1)), torch.tanh(z[2] - z[1])]

    def gradient(adjoint: Any) -> Tensor:
        beta = torch.tensor(0.4, requires_grad=True)
        z0 = [x * 0.1, x[:, 0], x[:, 1]]
        solution = solve(f, z0, x, beta=beta, max_steps=5, adjoint=adjoint)
        loss = torch.stack([leaf.square().sum() for leaf in (*solution.z, *solution.y)]).sum()
        return torch.autograd.grad(loss, beta)[0]

    for _ in range(5):
        x = torch.randn(6, 16)
        assert torch.equal(gradient(adjoint), gradient("backprop"))


def test_the_gradient_of_beta_is_that_of_finite_differences() -> None:
    f, x = cell_and_input("mlp")
    f, x = f.double(), x.detach().double()

    def value(beta: Tensor) -> Tensor:
        return solve(f, torch.zeros_like(x), x, beta=beta, max_steps=4).z

    assert torch.autograd.gradcheck(
        value, torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    )
    channels = torch.linspace(0.4, 0.7, 16, dtype=torch.float64).view(1, 16).requires_grad_()
    assert torch.autograd.gradcheck(value, channels)


def test_beta_for_every_channel_in_float32() -> None:
    f, x = cell_and_input("conv")
    beta = torch.full((8, 1, 1), 0.5)
    plain = solve(f, torch.zeros_like(x), x, max_steps=4, state=torch.float32).z
    assert torch.equal(
        solve(f, torch.zeros_like(x), x, beta=beta, max_steps=4, state=torch.float32).z, plain
    )
    assert_exact_gradients(
        f, torch.zeros_like(x), x, beta=beta.requires_grad_(), max_steps=4, state=torch.float32
    )
