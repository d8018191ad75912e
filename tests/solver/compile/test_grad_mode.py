"""Inductor, bfloat16: a compiled f may have other bits under no_grad than with grad mode on.

The two graphs fuse, and so round, other operations. With grad mode on, a solve runs f with grad
mode on in both of its passes, so that its gradient is right.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_revdeq import solve

pytestmark = pytest.mark.slow  # inductor

BF16 = torch.bfloat16


class Cell(nn.Module):
    """A product, a normalization and an activation: what Inductor fuses."""

    def __init__(self) -> None:
        super().__init__()
        self.of_z, self.norm = nn.Linear(64, 64), nn.RMSNorm(64)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.of_z(z) + x))


def cell_and_input() -> tuple[Cell, Tensor]:
    return Cell().to(BF16), torch.randn(32, 64, dtype=BF16, requires_grad=True)


def solved(f: Any, x: Tensor, **options: Any) -> Any:
    return solve(f, torch.zeros_like(x), x, max_steps=4, **options)


def test_a_compiled_f_has_other_bits_and_the_gradient_is_right() -> None:
    cell, x = cell_and_input()
    f = torch.compile(cell)
    z = torch.randn_like(x, requires_grad=True)  # as a solve passes it
    value = f(z, x)
    with torch.no_grad():
        assert not torch.equal(f(z, x), value), "torch has the same bits now: docs/compiling.md"
    torch.testing.assert_close(f(z, x), cell(z, x), atol=2**-6, rtol=0)  # either is f, rounded

    found = []
    for adjoint in ("reversible", "backprop"):
        solution = solved(f, x, adjoint=adjoint, accumulate="autograd")
        loss = solution.z.float().square().sum()
        found.append([solution.z, *torch.autograd.grad(loss, [x, *cell.parameters()])])
    assert all(map(torch.equal, *found))
    with torch.no_grad():
        assert not torch.equal(solved(f, x).z, found[0][0])


def test_the_graphs_of_a_compiled_solve_have_the_same_bits() -> None:
    cell, x = cell_and_input()
    solution = solved(cell, x, compile=True)
    with torch.no_grad():
        without = solved(cell, x, compile=True)
    assert solution.stats.route.startswith("compiled") and torch.equal(without.z, solution.z)
    solution.z.float().sum().backward()
    assert solution.stats.reconstruction_error == 0.0
