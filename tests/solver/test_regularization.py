"""The estimates of how much f contracts, against Jacobians that are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.solver.cells import MLP
from torch_revdeq import jacobian_penalty, solve, spectral_radius

F64 = torch.float64


def test_the_penalty_estimates_the_norm_of_the_jacobian() -> None:
    torch.manual_seed(0)
    f, z = MLP(8, dtype=F64), torch.randn(8, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(f, z)
    assert isinstance(jacobian, Tensor)
    want = jacobian.square().sum() / 8
    got = jacobian_penalty(f, z, samples=4000).detach()
    # A sample's deviation is at most sqrt(2) of its mean: that of a square of one normal number.
    assert float(got) == pytest.approx(float(want.detach()), rel=5 * (2 / 4000) ** 0.5)


def test_the_penalty_is_differentiable() -> None:
    torch.manual_seed(0)
    f, z, x = MLP(4, dtype=F64), torch.randn(3, 4, dtype=F64), torch.randn(3, 4, dtype=F64)

    def value(z: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        torch.manual_seed(1)
        return jacobian_penalty(lambda z, x: torch.tanh(z @ weight + x), z, x, samples=2)

    inputs = [t.requires_grad_() for t in (z, x, torch.randn(4, 4, dtype=F64))]
    assert torch.autograd.gradcheck(value, inputs)
    penalty = jacobian_penalty(f, solve(f, z.detach(), x).z.detach(), x)
    penalty.backward()
    assert f.a.weight.grad is not None and f.a.weight.grad.abs().sum() > 0


def test_training_with_the_penalty_makes_a_cell_contract() -> None:
    torch.manual_seed(0)
    f, z = MLP(8), torch.randn(4, 8)
    optimizer = torch.optim.SGD(f.parameters(), lr=1.0)
    before = spectral_radius(f, z)
    for _ in range(30):
        optimizer.zero_grad()
        jacobian_penalty(f, z).backward()
        optimizer.step()
    assert spectral_radius(f, z) < 0.7 * before


@pytest.mark.parametrize("eigenvalues", [[0.9, 0.3, 0.1, -0.2], [-1.5, 0.3, 0.2, 0.1]])
def test_the_spectral_radius_of_a_known_matrix(eigenvalues: list[float]) -> None:
    torch.manual_seed(0)
    basis = torch.randn(4, 4, dtype=F64)
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=F64)) @ torch.linalg.inv(basis)
    found = spectral_radius(lambda z: z @ matrix, torch.zeros(4, dtype=F64))
    # The estimate is (|v50| / |v25|)^(1/25). In the basis of eigenvectors all but the first have
    # shrunk, relatively, by the ratio of the eigenvalues to the 25th; 1e3 is for how much more of
    # them than of the first the random start has.
    second, first = sorted(map(abs, eigenvalues))[-2:]
    off = 1e3 * float(torch.linalg.cond(basis)) * (second / first) ** 25
    assert float(found) == pytest.approx(first, rel=2 * off / 25 + 1e-12)


def test_the_spectral_radius_of_a_rotation() -> None:
    """Two complex eigenvalues of one size: no single vector is an answer, their growth is."""
    angle = torch.tensor(0.7, dtype=F64)
    rotation = 0.8 * torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )
    found = spectral_radius(lambda z: z @ rotation, torch.zeros(2, dtype=F64))
    assert float(found) == pytest.approx(0.8, rel=1e-13)  # every product shrinks alike: roundings


def test_trees_constants_and_16_bits() -> None:
    z = {"a": torch.randn(3, 4), "b": torch.randn(3, 4, dtype=torch.bfloat16)}

    def f(z: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": 0.5 * z["b"].float(), "b": (0.5 * z["a"]).bfloat16()}

    # Halving is exact; the vector of norm 1 is rounded to bfloat16, by up to 2^-9 of itself.
    assert float(spectral_radius(f, z)) == pytest.approx(0.5, rel=2**-8)
    # A mean over 24 x 500 squares of normal numbers: 0.1 is 7 of its standard deviations.
    assert float(jacobian_penalty(f, z, samples=500).detach()) == pytest.approx(0.25, rel=0.1)
    assert float(jacobian_penalty(lambda z: torch.ones(3), torch.zeros(3))) == 0.0
    assert float(spectral_radius(lambda z: torch.ones(3), torch.zeros(3))) == 0.0


def test_under_no_grad_and_errors() -> None:
    f, z = MLP(4), torch.zeros(3, 4)
    with torch.no_grad():
        assert float(jacobian_penalty(f, z)) > 0
    with pytest.raises(ValueError, match="samples: expected"):
        jacobian_penalty(f, z, samples=0)
    with pytest.raises(ValueError, match="iterations: expected"):
        spectral_radius(f, z, iterations=1)
    with pytest.raises(ValueError, match="f: expected"):
        jacobian_penalty(lambda z: z[:1], z)
    with pytest.raises(TypeError, match="z: expected floating-point"):
        spectral_radius(f, z.int())
