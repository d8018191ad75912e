"""What f keeps of one evaluation and reads in another: refused where its gradient would be lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.solver.cells import TwoMaps
from tests.solver.evaluation.test_boundary import CUT, KEPT, options_of
from tests.solver.solving import loop
from torch_revdeq import CaptureError, fixed_point, solve

INJECTIONS: dict[str, tuple[Callable[[TwoMaps, Tensor], Tensor], str]] = {
    "input": (lambda f, x: x, "it was given there"),
    "scaled": (lambda f, x: 2 * x, "it was computed there by MulBackward0"),
    "learned": (lambda f, x: f.of_x(x), "it was computed there by AddmmBackward0"),
    "weight": (lambda f, x: x + f.of_x.weight @ f.of_x.weight, "it was computed there by AddB"),
}
"""What f makes of its input, and what the error says of it."""


class Once(TwoMaps):
    """A cell that computes something of its input in the first evaluation, and keeps it."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.u = what, None

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        if self.u is None:
            self.u = INJECTIONS[self.what][0](self, x)
        return torch.tanh(0.3 * self.of_z(z) + self.u)


@pytest.mark.parametrize("what", INJECTIONS)
@pytest.mark.parametrize("adjoint", [*CUT, "hooks", "checkpoint"])
def test_an_injection_computed_once(adjoint: str, what: str) -> None:
    """Right, or refused by name."""
    torch.manual_seed(0)
    w, z0, f = torch.randn(16, 16, requires_grad=True), torch.zeros(16, 16), Once(what)
    (want,) = torch.autograd.grad(loop(f, z0, torch.sin(w))[0].square().sum(), w)
    f.u = None
    try:
        z = solve(f, z0, torch.sin(w), **options_of(adjoint)).z
        (got,) = torch.autograd.grad(z.square().sum(), w)
    except RuntimeError as error:
        if not re.match(KEPT, str(error)):
            raise
    else:
        assert (got - want).norm() <= 2.0**-14 * want.norm()


@pytest.mark.parametrize("what", INJECTIONS)
@pytest.mark.parametrize("adjoint", CUT)
def test_what_is_kept_is_refused_in_the_forward_pass(adjoint: str, what: str) -> None:
    x, z0, f = torch.randn(16, 16, requires_grad=True), torch.zeros(16, 16), Once(what)
    said = rf"recompute what it reads.*kept from an earlier one \({INJECTIONS[what][1]}.*compute"
    with pytest.raises(CaptureError, match=said):
        solve(f, z0, torch.sin(x) if what != "input" else x, **options_of(adjoint))
    # And in the next solve, which finds it there.
    with pytest.raises(CaptureError, match=r"an earlier solve|recompute what|its own parameters"):
        solve(f, z0, torch.sin(x), **options_of(adjoint))


@pytest.mark.parametrize("what", ["input", "scaled"])
@pytest.mark.parametrize("adjoint", CUT)
def test_what_is_kept_of_a_constant_loses_nothing(adjoint: str, what: str) -> None:
    x = torch.randn(16, 16)
    solve(Once(what), torch.zeros(16, 16), x, **options_of(adjoint)).z.sum().backward()


@pytest.mark.parametrize("adjoint", ["hooks", "checkpoint"])
def test_other_tensors_on_the_way_back(adjoint: Any) -> None:
    x = torch.randn(16, 16, requires_grad=True)
    z = solve(Once("learned"), torch.zeros(16, 16), x, adjoint=adjoint).z
    with pytest.raises(RuntimeError, match=r"f: expected to save the same.*f keeps something"):
        z.sum().backward()


@pytest.mark.parametrize("adjoint", ["hooks", "checkpoint"])
def test_what_autograd_saved_and_f_changed_afterwards(adjoint: Any) -> None:
    w = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)

    def f(z: Tensor, x: Tensor) -> Tensor:
        h = torch.exp(-(z @ w))  # autograd saves the result
        out = torch.tanh(h + x)
        h.add_(1)
        return out

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    z = solve(f, torch.zeros_like(x), x, adjoint=adjoint).z
    with pytest.raises(RuntimeError, match=r"f: expected not to modify what autograd saved"):
        z.sum().backward()


@pytest.mark.parametrize("adjoint", ["implicit", "phantom"])
@pytest.mark.parametrize("what", ["scaled", "learned"])
def test_what_is_kept_in_an_iteration_to_a_limit(what: str, adjoint: str) -> None:
    x = torch.randn(16, 16, requires_grad=True)
    with pytest.raises(CaptureError, match="recompute what it reads"):
        fixed_point(Once(what), torch.zeros(16, 16), x, adjoint=adjoint)  # type: ignore[arg-type]


def test_a_limit_may_close_over_what_was_computed_before() -> None:
    torch.manual_seed(0)
    f, w = TwoMaps(), torch.randn(4, 16, requires_grad=True)
    x = torch.sin(w)
    values = []
    for run in (lambda z: f(z, x), f):
        args = () if run is not f else (x,)
        z = fixed_point(run, torch.zeros(4, 16), *args, tol=1e-7, max_steps=200).z
        values.append(torch.autograd.grad(z.square().sum(), w, retain_graph=True)[0])
    assert torch.equal(*values)


def test_the_state_of_an_earlier_evaluation() -> None:
    before: list[Tensor] = []

    def f(z: Tensor) -> Tensor:
        before.append(z)
        return torch.tanh(0.5 * z + 0.1 * before[max(len(before) - 2, 0)])

    with pytest.raises(CaptureError, match="recompute what it reads"):
        solve(f, torch.ones(4, requires_grad=True))


def test_a_container_that_is_no_pytree_is_named() -> None:
    class Graph:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    w, f = torch.randn(4, 16, requires_grad=True), TwoMaps()
    graph, said = Graph(torch.sin(w)), r"Graph is not a pytree.*register_pytree_node.*tuple or dict"
    with pytest.raises(CaptureError, match=said):
        solve(lambda z, g: f(z, g.x), torch.zeros(4, 16), graph, adjoint="reversible")
