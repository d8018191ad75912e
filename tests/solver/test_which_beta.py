"""Which f converge at which beta, as docs/choosing.md says: the spectrum of f decides."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from torch_revdeq import solve

BETAS = (0.1, 0.3, 0.5, 0.8)


def residual(matrix: Tensor, beta: float) -> float:
    x = torch.tensor([1.0, -0.5], dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return matrix @ z + x

    z0 = torch.zeros_like(x)
    return solve(f, z0, beta=beta, max_steps=400, state=torch.float64).stats.residual


def rotation(degrees: float) -> Tensor:
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("slope", [0.7, -0.7])
def test_a_real_slope_below_one_converges_at_every_beta(slope: float, beta: float) -> None:
    assert residual(slope * rotation(0), beta) < 1e-3


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("slope", [1.1, -1.1])
def test_a_real_slope_beyond_one_converges_at_no_beta(slope: float, beta: float) -> None:
    assert not residual(slope * rotation(0), beta) < 0.05


def test_a_smaller_beta_damps_a_rotation() -> None:
    turned = 1.2 * rotation(90)
    assert residual(turned, 0.3) < 1e-6 < 0.1 < residual(turned, 0.95)


@pytest.mark.parametrize("beta", BETAS)
def test_a_bounded_f_may_end_in_a_pair(beta: float) -> None:
    """y = f(z) and z = f(y), and neither is a fixed point."""
    x = torch.full((4,), 0.01, dtype=torch.float64)
    solution = solve(
        lambda z: torch.tanh(-3 * z + x),
        torch.zeros(4, dtype=torch.float64),
        beta=beta,
        max_steps=400,
        state=torch.float64,
    )
    assert (solution.y - solution.z).abs().min() > 1
    assert solution.stats.residual > 1
