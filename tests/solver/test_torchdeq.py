"""What docs/from-torchdeq.md says of torchdeq and of this library, where torchdeq is installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_revdeq import (
    Anderson,
    Broyden,
    LinearCell,
    Picard,
    Relaxed,
    fixed_point,
    solve,
    spectral_radius,
)

torchdeq = pytest.importorskip("torchdeq", reason="torchdeq is not installed")

Function = Callable[[Tensor], Tensor]


def contraction(width: int, samples: int = 16) -> tuple[Function, Tensor]:
    """A map that contracts by less than 0.9, in float64, and its initial state."""
    drawn = torch.Generator().manual_seed(0)
    w = torch.randn(width, width, generator=drawn, dtype=torch.float64)
    w *= 0.9 / torch.linalg.matrix_norm(w, 2)
    b = torch.randn(samples, width, generator=drawn, dtype=torch.float64)
    return lambda z: torch.tanh(z @ w.T + b), torch.zeros_like(b)


def theirs(f: Function, z0: Tensor, solver: str, **options: Any) -> tuple[Tensor, dict[str, Any]]:
    """The state that one of torchdeq's solvers returns, and its info."""
    forward = torchdeq.get_deq(f_solver=solver).f_solver
    with torch.no_grad():
        z, _, info = forward(f, x0=z0, max_iter=500, tol=1e-3, **options)
    return z, info


def norms(difference: Tensor) -> Tensor:
    return difference.flatten(1).norm(dim=1)


# ---- the stopping rule -------------------------------------------------------------------------


@pytest.mark.parametrize("width", [32, 1024])
def test_the_default_rule_is_an_absolute_norm_of_each_sample(width: int) -> None:
    """So the same tolerance asks for more digits of a wider state; a relative one does not."""
    f, z0 = contraction(width)
    with torch.no_grad():
        _, default = theirs(f, z0, "fixed_point_iter")
        _, absolute = theirs(f, z0, "fixed_point_iter", stop_mode="abs")
        assert torch.equal(default["abs_trace"], absolute["abs_trace"])
        states = [z0]
        for _ in range(30):
            states.append(f(states[-1]))
        steps = next(k for k in range(30) if norms(states[k + 1] - states[k]).max() < 1e-3) + 1
        assert int(default["nstep"].max()) == steps
        _, relative = theirs(f, z0, "fixed_point_iter", stop_mode="rel")
        found = fixed_point(f, z0, tol=1e-3, solver=Picard())
        assert found.stats.steps <= int(relative["nstep"].max()) < steps
        norm = float(norms(f(found.z)).max())
        left = float(norms(f(found.z) - found.z).max())
        assert left < 1e-3 * norm
        if width == 1024:  # the tolerance of one is met, that of the other is not
            assert left > 1e-3


def test_tau_scales_the_residual_of_plain_iteration_alone() -> None:
    """The damped step is measured: at tau = 0.1 it stops at about ten times the residual."""
    f, z0 = contraction(32)
    for solver, low, high in (("fixed_point_iter", 8.0, 10.0), ("anderson", 0.0, 1.0)):
        z, info = theirs(f, z0, solver, tau=0.1)
        reported = float(info["abs_lowest"].max())
        assert reported < 1e-3
        assert low < float(norms(f(z) - z).max()) / reported < high
    for options in (Picard(), Relaxed(0.1), Anderson(batched=True), Broyden(batched=True)):
        with torch.no_grad():
            found = fixed_point(f, z0, tol=1e-3, max_steps=500, solver=options)
            value = f(found.z)
            left = (value - found.z).norm() / (1e-5 + value.norm())
        assert float(left) < 1e-3 and found.stats.residual < 1e-3


def test_anderson_with_two_iterations_returns_its_initial_state() -> None:
    f, z0 = contraction(32)
    forward = torchdeq.get_deq(f_solver="anderson").f_solver
    assert torch.equal(forward(f, x0=z0, max_iter=2, tol=1e-3)[0], z0)
    with pytest.warns(UserWarning, match="^fixed_point: "):
        found = fixed_point(f, z0, max_steps=2, tol=1e-3, solver=Anderson(batched=True)).z
    assert not torch.equal(found, z0)


# ---- derivatives -------------------------------------------------------------------------------


def scalar(z: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(0.5 * z + x)


def second(z: Tensor, x: Tensor) -> float:
    (first,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    return float(torch.autograd.grad(first.sum(), x)[0])


@pytest.mark.parametrize("how", ["ift", "hook_ift"])
def test_a_second_derivative_by_the_implicit_function_theorem(how: str) -> None:
    """Wrong there without an error; raises here, and is right by the other adjoints."""
    x = torch.full((1, 1), 0.7, dtype=torch.float64, requires_grad=True)
    z0 = torch.zeros_like(x)
    z = z0
    for _ in range(100):
        z = scalar(z, x)
    right = second(z, x)
    assert right == pytest.approx(-1.041, abs=1e-3)

    tight = {"f_max_iter": 200, "b_max_iter": 200, "f_tol": 1e-13, "b_tol": 1e-13}
    deq = torchdeq.get_deq(**tight, **{how: True})
    wrong = second(deq(lambda z: scalar(z, x), z0)[0][-1], x)
    assert wrong == pytest.approx(-0.701, abs=1e-3)

    with pytest.raises(RuntimeError, match="create_graph"):
        second(fixed_point(scalar, z0, x, tol=1e-12).z, x)
    phantom: dict[str, Any] = {"adjoint": "phantom", "phantom_steps": 40}
    assert second(fixed_point(scalar, z0, x, tol=1e-12, **phantom).z, x) == pytest.approx(right)
    solution = solve(scalar, z0, x, beta=0.8, max_steps=60, state=torch.float64)
    assert second(solution.z, x) == pytest.approx(right)


@pytest.mark.parametrize(("steps", "tau", "off"), [(1, 1.0, 0.49), (3, 1.0, 0.13), (3, 0.8, 0.19)])
def test_a_phantom_gradient_is_off_by_as_much_in_both(steps: int, tau: float, off: float) -> None:
    torch.manual_seed(0)
    f, x = LinearCell(32, 32), torch.randn(16, 32)
    z0 = torch.zeros_like(x)

    def gradient(z: Tensor) -> Tensor:
        return torch.autograd.grad(z.square().mean(), f.W)[0]

    exact = gradient(fixed_point(f, z0, x, tol=1e-6, max_steps=200).z)
    deq = torchdeq.get_deq(f_max_iter=200, f_tol=1e-6, grad=steps, tau=tau)
    options: dict[str, Any] = {"adjoint": "phantom", "phantom_steps": steps, "phantom_beta": tau}
    for z in (
        deq(lambda z: f(z, x), z0)[0][-1],
        fixed_point(f, z0, x, tol=1e-6, max_steps=200, **options).z,
    ):
        distance = float((gradient(z) - exact).norm() / exact.norm())
        assert distance == pytest.approx(off, abs=0.01)


# ---- the spectral radius -----------------------------------------------------------------------


@pytest.mark.parametrize(("angle", "reported"), [(math.pi / 2, 0.0), (1.0, 0.9 * math.cos(1.0))])
def test_the_spectral_radius_of_a_rotation(angle: float, reported: float) -> None:
    """Complex eigenvalues: torchdeq reports the quotient v·Jv / v·v, here it is their modulus."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = 0.9 * torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    z0 = torch.zeros(1, 2, dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return z @ turn.T + 1

    deq = torchdeq.get_deq(f_max_iter=300).eval()
    _, info = deq(f, z0, sradius_mode=True)
    assert float(info["sradius"]) == pytest.approx(reported, abs=1e-6)
    assert float(spectral_radius(f, z0)) == pytest.approx(0.9)
