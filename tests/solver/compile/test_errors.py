"""torch.compile of a model around the solver: what is refused, and what breaks a graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.solver.cells import MLP
from tests.solver.compile.compiling import Model, assert_same, gradients, whole
from torch_revdeq import CaptureError, ReconstructionError, solve


def test_another_callable_breaks_the_graph_and_says_why() -> None:
    f, x = MLP(), torch.randn(6, 16)

    def run(x: Tensor) -> Tensor:
        return solve(lambda z: f(z, x), torch.zeros_like(x)).z

    want = gradients(f, run, x)
    assert_same(gradients(f, torch.compile(run, backend="aot_eager"), x), want)
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"solve: expected an nn.Module .*make f a module"):
        whole(run)(x)


def test_a_leaf_that_is_neither_argument_nor_parameter_is_refused() -> None:
    hidden = torch.randn(16, requires_grad=True)

    class Reads(nn.Module):
        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(z + x * hidden)

    f, x = Reads(), torch.randn(6, 16, requires_grad=True)
    solve(f, torch.zeros_like(x), x)  # eager mode takes it
    with pytest.raises(CaptureError, match=r"inside torch.compile, got another tensor of shape"):
        whole(lambda x: solve(f, torch.zeros_like(x), x).z)(x)


def test_a_failed_check_raises_from_the_backward_pass() -> None:
    model, x = Model(), torch.randn(6, 16)
    out = whole(model)(x)
    model.equilibrium.f.a.weight.data.mul_(1.5)  # nobody counts this change
    with pytest.raises(ReconstructionError, match="was changed since the forward pass"):
        out.sum().backward()


def test_a_change_that_is_counted_raises_too() -> None:
    model, x = Model(), torch.randn(6, 16)
    out = whole(model)(x)
    with torch.no_grad():
        model.equilibrium.f.a.weight.mul_(1.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_errors_of_arguments_are_those_of_eager_mode() -> None:
    f, x = MLP(), torch.randn(6, 16)
    with pytest.raises(ValueError, match="beta: expected a number in"):
        whole(lambda x: solve(f, torch.zeros_like(x), x, beta=2.5).z)(x)
