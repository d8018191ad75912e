"""Solvers of the user's own in ``fixed_point``, and what is said of those that go wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_revdeq import Anderson, FixedPointSolver, Picard, fixed_point
from torch_revdeq.limit import Map, Run, relative_residual

W = torch.tensor([0.5, -0.25, 0.75])


def f(z: Tensor, x: Tensor) -> Tensor:
    return W * z + x


class Mine:
    """Picard, written as a user would, without a base class."""

    def run(self, f: Map, z: list[Tensor], tol: float, max_steps: int) -> Run:
        steps, residual = 0, math.inf
        while steps < max_steps and residual >= tol:
            value = f(z)
            steps, residual = steps + 1, relative_residual(z, value)
            z = value
        return Run(z, steps, residual)


@dataclass
class Returns:
    """Whatever it is told to."""

    what: Any

    def run(self, f: Map, z: list[Tensor], tol: float, max_steps: int) -> Any:
        run = Mine().run(f, z, tol, max_steps)
        return self.what(run) if callable(self.what) else self.what


def solved(solver: Any, **options: Any) -> tuple[Tensor, Tensor, Any]:
    """z, the gradient of its sum with respect to x, and the stats."""
    x = torch.ones(3, requires_grad=True)
    options = {"tol": 1e-6, "max_steps": 200, **options}
    found = fixed_point(f, torch.zeros(3), x, solver=solver, **options)
    (grad,) = torch.autograd.grad(found.z, x, torch.ones(3))
    return found.z.detach(), grad, found.stats


@pytest.mark.parametrize("adjoint", ["implicit", "phantom"])
def test_one_that_is_right(adjoint: str) -> None:
    solver: FixedPointSolver = Mine()  # for pyright
    z, grad, stats = solved(solver, adjoint=adjoint, phantom_steps=40)
    torch.testing.assert_close(z, 1 / (1 - W))
    # 40 phantom steps leave out 0.8 ** 40, where 0.2 + 0.8 * 0.75 = 0.8.
    torch.testing.assert_close(grad, 1 / (1 - W), rtol=2e-4, atol=0.0)
    assert stats.converged and stats.nfe > stats.steps


def test_one_for_the_backward_pass_alone() -> None:
    """f is linear in u there: one that solves the system in closed form will do."""

    class Diagonal:
        def run(self, f: Map, z: list[Tensor], tol: float, max_steps: int) -> Run:
            g, ones = z[0], torch.ones_like(z[0])
            j = f([g + ones])[0] - f([g])[0]
            u = [g / (1 - j)]
            return Run(u, 2, relative_residual(u, f(u)))

    _, grad, stats = solved(Picard(), adjoint_solver=Diagonal())
    torch.testing.assert_close(grad, 1 / (1 - W))
    assert stats.adjoint_steps == 2


@pytest.mark.parametrize(
    "solver",
    ["anderson", Anderson, object(), Picard],
    ids=["a word", "a class", "an object", "a function"],
)
@pytest.mark.parametrize("option", ["solver", "adjoint_solver"])
def test_what_is_no_solver(option: str, solver: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{option}: expected an object with a method run"):
        fixed_point(f, torch.zeros(3), torch.ones(3), **{option: solver})


WRONG = {
    "expected Returns.run to return a torch_revdeq.limit.Run, got NoneType": None,
    "to return a torch_revdeq.limit.Run, got tuple": lambda run: (run.z, run.steps, run.residual),
    "to return steps as an integer, got None": lambda run: Run(run.z, None, run.residual),  # type: ignore[arg-type]
    "to return steps as an integer, got True": lambda run: Run(run.z, True, run.residual),
    "to return a residual that is a number, got Tensor": lambda run: Run(
        run.z,
        run.steps,
        torch.tensor(run.residual),  # type: ignore[arg-type]
    ),
    "to return the evaluations of f as steps, got -3": lambda run: Run(run.z, -3, run.residual),
    "to return a residual of at least 0, a norm, got -1": lambda run: Run(run.z, 1, -1.0),
    "to return a residual that is a number, got bool": lambda run: Run(run.z, run.steps, True),
    "to return a list of 1 leaves as z, got Tensor": lambda run: Run(run.z[0], 1, 0.0),
    "to return a list of 1 leaves as z, got 2": lambda run: Run([*run.z, *run.z], 1, 0.0),
    "to return tensors in z, got list at 0": lambda run: Run([run.z[0].tolist()], 1, 0.0),
    r"torch.float32 \(3,\) on cpu at leaf 0, got torch.float64 \(3,\)": lambda run: Run(
        [run.z[0].double()], 1, 0.0
    ),
    r"torch.float32 \(3,\) on cpu at leaf 0, got torch.float32 \(1, 3\)": lambda run: Run(
        [run.z[0][None]], 1, 0.0
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_it_returns(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        solved(Returns(WRONG[message]))
    x = torch.ones(3, requires_grad=True)
    found = fixed_point(
        f, torch.zeros(3), x, solver=Picard(), adjoint_solver=Returns(WRONG[message])
    )
    with pytest.raises((TypeError, ValueError), match=f"^adjoint_solver: .*{message[9:]}"):
        found.z.sum().backward()
    assert x.grad is None


def test_numbers_of_numpy() -> None:
    numbers: tuple[Any, Any] = np.int64(7), np.float32(1e-7)
    stats = solved(Returns(lambda run: Run(run.z, *numbers)))[2]
    assert type(stats.steps) is int and type(stats.residual) is float and stats.converged


@pytest.mark.parametrize("adjoint", ["implicit", "phantom"])
def test_a_residual_that_is_not_true(adjoint: str) -> None:
    """It would be a gradient at a place that is no limit, without a word."""
    wrong = Returns(lambda run: Run([z + 0.1 for z in run.z], run.steps, run.residual))
    with pytest.raises(ValueError, match=r"^solver: expected the residual that Returns.run report"):
        solved(wrong, adjoint=adjoint)
    with pytest.raises(ValueError, match="got nan"):
        solved(Returns(lambda run: Run([z * math.nan for z in run.z], 3, 0.0)), adjoint=adjoint)


def test_a_residual_of_the_adjoint_that_is_not_true() -> None:
    wrong = Returns(lambda run: Run([u + 0.1 for u in run.z], run.steps, run.residual))
    with pytest.raises(ValueError, match=r"^adjoint_solver: expected the residual"):
        solved(Picard(), adjoint_solver=wrong)


def test_one_step_between_the_residual_and_z_is_let_pass() -> None:
    """As the library's own relaxation has it; and in 16 bits the roundings of z."""
    after = Returns(lambda run: Run([W * run.z[0] + 1], run.steps, run.residual))
    assert solved(after)[2].converged
    w = torch.tensor([0.3, -0.7, 0.6]).bfloat16()
    x = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)

    class Wide:
        """In closed form, in float32, and rounded in the end: z is off by half of 2**-8 then."""

        def run(self, f: Map, z: list[Tensor], tol: float, max_steps: int) -> Run:
            self.z = [(1 / (1 - w.float())).bfloat16()]
            return Run(self.z, 1, 0.0)

    solver = Wide()
    z0 = torch.zeros_like(w)
    found = fixed_point(lambda z, x: w * z + x, z0, x, solver=solver, adjoint_solver=Picard())
    assert found.stats.converged
    assert relative_residual(solver.z, [w * solver.z[0] + 1]) > 1e-3 > 10 * 1e-5  # tol


def test_nan_is_not_converged() -> None:
    with pytest.warns(UserWarning, match=r"expected a residual below 1e-06, got nan"):
        solved(Returns(lambda run: Run(run.z, 3, math.nan)), adjoint_solver=Picard())


def test_a_start_that_is_changed_in_place() -> None:
    class InPlace:
        def run(self, f: Map, z: list[Tensor], tol: float, max_steps: int) -> Run:
            value = f(z)
            z[0].copy_(value[0])
            return Mine().run(f, z, tol, max_steps)

    with pytest.raises(ValueError, match=r"^solver: expected InPlace.run to leave the z"):
        solved(InPlace())
    with pytest.raises(ValueError, match=r"^adjoint_solver: expected InPlace.run to leave the z"):
        solved(Picard(), adjoint_solver=InPlace())


def test_under_inference_mode() -> None:
    with torch.inference_mode():
        found = fixed_point(f, torch.zeros(3), torch.ones(3), solver=Mine())
    assert found.stats.converged


def test_a_graph_that_a_solver_leaves_is_not_part_of_the_gradient() -> None:
    class Recording:
        def run(self, f: Map, z: list[Tensor], tol: float, max_steps: int) -> Run:
            run = Mine().run(f, z, tol, max_steps)
            with torch.enable_grad():
                spurious = (1 + 0 * torch.ones(3, requires_grad=True)).sum() / 3
                return Run([z * spurious for z in run.z], run.steps, run.residual)

    for adjoint in ("implicit", "phantom"):
        grads = [solved(s, adjoint=adjoint)[1] for s in (Mine(), Recording())]
        torch.testing.assert_close(*grads, rtol=1e-6, atol=0.0)
