"""Adjoints of the user's own."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.solver.cells import cell_and_input
from tests.solver.solving import inputs
from torch_revdeq import Adjoint, RevDEQ, solve
from torch_revdeq.adjoints import Backprop, Checkpoint, Functional, Hooks, Reversible
from torch_revdeq.options.table import LIMITED
from torch_revdeq.testing import assert_exact_gradients

F32 = torch.float32


class Named(Backprop):
    name = "named"


def start() -> tuple[nn.Module, Tensor]:
    return cell_and_input("mlp")


@pytest.mark.parametrize("kind", [Reversible, Hooks, Checkpoint, Backprop])
def test_an_adjoint_by_its_class_is_the_one_by_its_name(kind: type[Adjoint]) -> None:
    f, x = start()

    def gradients(adjoint: Any) -> list[Tensor]:
        z = solve(f, x, adjoint=adjoint, max_steps=3, accumulate="autograd").z
        return [*torch.autograd.grad(z.square().sum(), [*f.parameters()])]

    named = gradients(kind.name)
    assert all(map(torch.equal, named, gradients(kind())))


def test_an_adjoint_of_ones_own() -> None:
    f, x = start()
    assert solve(f, x, adjoint=Named()).stats.adjoint == "named"
    with torch.no_grad():
        assert solve(f, x, adjoint=Named()).stats.adjoint == "named"
    assert_exact_gradients(f, x, adjoint=Named(), max_steps=4)
    layer = RevDEQ(f, adjoint=Named())
    layer(x).sum().backward()
    assert layer.stats is not None and layer.stats.adjoint == "named"
    assert isinstance(copy.deepcopy(layer).options["adjoint"], Named)


class Bare(Adjoint):
    name = "bare"

    def solve(self, problem: Any) -> Any:
        return Backprop().solve(problem)


@pytest.mark.parametrize("option", [o.name for o in LIMITED if o.name != "process_group"])
def test_an_option_that_an_adjoint_does_not_say_it_takes(option: str) -> None:
    values: dict[str, Any] = {
        "tol": {"tol": 0.1},
        "per_sample": {"tol": 0.1, "per_sample": True},
        "frac_bits": {"frac_bits": 8},
        "save_at": {"save_at": [1]},
        "backward_steps": {"backward_steps": 1},
        "store_last": {"store_last": 1},
        "memory_budget": {"memory_budget": 1, "store_last": "auto"},
    }
    f, x = start()
    with pytest.raises(ValueError, match=r"expected .* with adjoint='bare', got"):
        solve(f, x, adjoint=Bare(), **values[option])


def test_what_f_may_do_follows_from_the_adjoint() -> None:
    """One that may evaluate f again gets the checks; one that says it does not is spared them."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, z: Tensor) -> Tensor:
            with torch.no_grad():
                self.count.add_(1)  # type: ignore[operator]
            return torch.tanh(z * self.count.clone())  # type: ignore[operator]

    x = inputs()

    class Again(Reversible):
        name = "again"

    with pytest.raises(RuntimeError, match="expected not to read the buffers"):
        solve(Reads(), x, adjoint=Again())
    solve(Reads(), x, adjoint=Named()).z.sum().backward()
    with pytest.raises(RuntimeError, match=r"with adjoint='bare', got a transform"):
        torch.func.grad(lambda x: solve(torch.tanh, x, adjoint=Bare(), state=F32).z.sum())(x)


def test_no_adjoint() -> None:
    f, x = start()
    with pytest.raises(NotImplementedError, match=r"Adjoint.solve: expected to be defined"):
        solve(f, x, adjoint=Adjoint())
    with pytest.raises(ValueError, match=r"adjoint: expected one of .*, or an Adjoint, got"):
        solve(f, x, adjoint=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"adjoint: expected an instance of Named, got the class"):
        solve(f, x, adjoint=Named)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"adjoint: expected a name in torch\.export and"):
        solve(torch.tanh, torch.zeros(3, device="meta"), adjoint=Named())
    assert repr(Functional()) == "Functional()"


def test_an_adjoint_without_a_name_has_that_of_its_class() -> None:
    class Nameless(Reversible):
        pass

    f, x = start()
    assert solve(f, x, adjoint=Nameless()).stats.adjoint == "Nameless"


@pytest.mark.parametrize("takes", [{"tolerance"}, "tol", {"beta"}])
def test_an_adjoint_that_takes_what_is_no_option(takes: Any) -> None:
    class Wrong(Backprop):
        pass

    Wrong.takes = takes
    f, x = start()
    with pytest.raises(ValueError, match=r"adjoint: expected Wrong.takes to be a set of tol, "):
        solve(f, x, adjoint=Wrong())


def test_one_that_hands_over_to_another_gets_that_one() -> None:
    """Stored activations stay stored: no evaluation of f on the way back."""
    f, x = start()
    calls = []
    f.register_forward_hook(lambda *_: calls.append(1))
    z = solve(f, x, adjoint=Bare(), max_steps=3).z
    before = len(calls)
    z.sum().backward()
    assert len(calls) == before


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda out: None, TypeError, "to return Outputs, got NoneType"),
        (lambda out: replace(out, stats=None), TypeError, "got one without statistics"),
        (lambda out: replace(out, z=[v.double() for v in out.z]), ValueError, "as z, .*float64"),
        (lambda out: replace(out, y=[v[:1] for v in out.y]), ValueError, "as y, "),
        (lambda out: replace(out, z=[]), ValueError, "as z, .* got none"),
        (lambda out: replace(out, saved=[]), ValueError, "to save 2 states, got 0"),
    ],
)
def test_outputs_that_are_not_those_of_the_problem(change: Any, error: Any, said: str) -> None:
    class Changed(Backprop):
        def solve(self, problem: Any) -> Any:
            return change(super().solve(problem))

    f, x = start()
    with pytest.raises(error, match=rf"adjoint: expected Changed.solve .*{said}"):
        solve(f, x, adjoint=Changed(), max_steps=3, save_at=[1, 2])


def test_a_compiled_graph_breaks_there() -> None:
    f, x = start()
    options: dict[str, Any] = {"adjoint": Named(), "max_steps": 4}
    compiled = torch.compile(lambda x: solve(f, x, **options).z, backend="eager")
    assert torch.equal(compiled(x), solve(f, x, **options).z)
