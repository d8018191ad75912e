"""adjoint="auto" where f closes over a tensor that was computed outside of it is "hooks"."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.solver.cells import MLP, Normed, TwoMaps
from tests.solver.solving import inputs
from torch_revdeq import CaptureError, ReconstructionError, RevDEQ, Solution, solve

BY = "solver; hooks, because f reads a tensor computed outside f (by "


class Cases:
    """Ways for f to read what `embedded` holds. Each returns f, z0 and what has a gradient."""

    @staticmethod
    def closure(f: nn.Module, embedded: Tensor) -> Callable[..., Any]:
        return lambda z: f(z, embedded)

    @staticmethod
    def partial(f: nn.Module, embedded: Tensor) -> Callable[..., Any]:
        return functools.partial(lambda e, z: f(z, e), embedded)

    @staticmethod
    def attribute(f: nn.Module, embedded: Tensor) -> Callable[..., Any]:
        class Held(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.f, self.context = f, {"of": [embedded]}

            def forward(self, z: Tensor) -> Tensor:
                return self.f(z, self.context["of"][0])

        return Held()

    @staticmethod
    def buffer(f: nn.Module, embedded: Tensor) -> Callable[..., Any]:
        class Held(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.f = f
                self.register_buffer("context", embedded)

            def forward(self, z: Tensor) -> Tensor:
                return self.f(z, self.context)

        return Held()

    @staticmethod
    def object(f: nn.Module, embedded: Tensor) -> Callable[..., Any]:
        class Held:
            def __init__(self) -> None:
                self.context = SimpleNamespace(e=embedded)

            def step(self, z: Tensor) -> Tensor:
                return f(z, self.context.e)

        return Held().step


def _found(
    make: Callable[..., Any], adjoint: Any, f: nn.Module, **options: Any
) -> tuple[Solution, list[Any]]:
    """A solution, and what is left of it: gradients, buffers, random numbers."""
    torch.manual_seed(0)
    for name, buffer in f.named_buffers():
        buffer.fill_(1) if "var" in name else buffer.zero_()
    encoder, x = nn.Linear(16, 16), torch.randn(6, 16, requires_grad=True)
    f.zero_grad()
    solution = solve(make(f, torch.sin(encoder(x))), torch.zeros(6, 16), adjoint=adjoint, **options)
    parts = [solution.z, solution.y, *solution.saved]
    aux = [] if solution.aux is None else [solution.aux]
    torch.stack([part.square().sum() for part in (*parts, *aux)]).sum().backward()
    read = [x, *encoder.parameters(), *f.parameters()]
    assert all(t.grad is not None for t in read)
    return solution, [*parts, *aux, *(t.grad for t in read), *f.buffers(), torch.rand(3)]


@pytest.mark.parametrize("cell", [MLP, Normed, functools.partial(MLP, p=0.3)])
@pytest.mark.parametrize("name", ["closure", "partial", "attribute", "buffer", "object"])
def test_auto_is_hooks_as_if_it_had_been_chosen(name: str, cell: Callable[..., nn.Module]) -> None:
    make, f = getattr(Cases, name), cell()
    got, here = _found(make, "auto", f)
    _, hooks = _found(make, "hooks", f)
    _, stored = _found(make, "backprop", f)
    assert got.stats.adjoint == "hooks" and got.stats.route == f"{BY}SinBackward0)"
    assert got.stats.reconstruction_error == 0.0
    for a, b, c in zip(here, hooks, stored, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    with pytest.raises(CaptureError, match=r"SinBackward0.*choose adjoint='hooks'"):
        _found(make, "reversible", f)


@pytest.mark.parametrize(
    "options",
    [
        {"state": torch.float32},
        {"tol": 1e-2, "max_steps": 30},
        {"tol": 1e-2, "max_steps": 30, "per_sample": True},
        {"save_at": [1, 3], "beta": 0.8},
        {"backward_steps": 2},
        {"rng": "shared"},
        {"compile": "auto", "store_last": 0},
    ],
)
def test_with_options(options: dict[str, Any]) -> None:
    if "compile" in options:
        options = {**options, "rng": "shared"}  # and f draws, which no graph does
    make, f = Cases.closure, MLP(p=0.1)
    got, here = _found(make, "auto", f, **options)
    _, stored = _found(make, "backprop", f, **{**options, "compile": False})
    assert got.stats.adjoint == "hooks" and "; hooks, because f reads" in got.stats.route
    assert got.stats.route.startswith("solver: " if options.get("compile") else "solver; ")
    exact = options.get("state") is None
    for a, b in zip(here, stored, strict=True):
        assert torch.equal(a, b) if exact else torch.allclose(a, b, atol=1e-5)


def test_aux_and_keywords() -> None:
    def make(f: nn.Module, embedded: Tensor) -> Callable[..., Any]:
        def cell(z: Tensor, step: int) -> tuple[Tensor, Tensor]:
            new = f(z, embedded)
            return new, (new * embedded).mean() * (step + 1)

        return cell

    f = MLP()
    options: dict[str, Any] = {"has_aux": True, "aux": "stack", "pass_step": True, "max_steps": 3}
    got, here = _found(make, "auto", f, **options)
    _, stored = _found(make, "backprop", f, **options)
    assert got.stats.adjoint == "hooks" and got.aux.shape == (6,)
    assert all(map(torch.equal, here, stored))


def test_a_recurrent_cell_with_two_states() -> None:
    def make(f: nn.Module, embedded: Tensor) -> Callable[..., Any]:
        return lambda z: f(embedded, z)

    found = []
    for adjoint in ("auto", "backprop"):
        torch.manual_seed(0)
        x, encoder, cell = inputs(), nn.Linear(16, 16), nn.LSTMCell(16, 16)
        z0 = torch.zeros(6, 16), torch.zeros(6, 16)
        z = solve(make(cell, encoder(x)), z0, adjoint=adjoint)
        assert adjoint != "auto" or z.stats.adjoint == "hooks"
        (z.z[0].sum() + z.z[1].square().sum()).backward()
        found.append([x.grad, *(p.grad for p in (*encoder.parameters(), *cell.parameters()))])
    assert all(map(torch.equal, *found))


embedded_globally = torch.zeros(())


def test_a_global_of_a_script() -> None:
    global embedded_globally
    f, x = MLP(), inputs()
    embedded_globally = torch.sin(x)
    stats = solve(lambda z: f(z, embedded_globally), torch.zeros(6, 16)).stats
    assert stats.adjoint == "hooks"


def test_the_layer_says_so_too() -> None:
    x = inputs()
    encoded = torch.sin(x)
    f = TwoMaps()
    layer = RevDEQ(lambda z, x: f(z, x + encoded), max_steps=3)
    layer(x).sum().backward()
    assert layer.stats is not None and layer.stats.adjoint == "hooks" and layer.adjoint == "auto"
    with torch.no_grad():
        layer(x)
    assert layer.stats.adjoint == "reversible" and layer.stats.route == "solver"


# ---- where it stays an error ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"store_last": 2},
        {"beta": torch.tensor(0.5, requires_grad=True), "state": torch.float32},
        {"adjoint": "reversible"},
        {"adjoint": "functional", "state": torch.float32},
    ],
)
def test_where_hooks_cannot_be_it_is_refused(options: dict[str, Any]) -> None:
    x, f = inputs(), MLP()
    encoded = torch.sin(x)
    with pytest.raises(CaptureError, match=r"f: expected to read its arguments.*pass it"):
        solve(lambda z: f(z, encoded), torch.zeros_like(x), **options).z.sum().backward()


def test_a_transform_is_refused_as_before() -> None:
    x, f = inputs(), MLP()
    encoded = torch.sin(x)

    def loss(z0: Tensor) -> Tensor:
        return solve(lambda z: f(z, encoded), z0, state=torch.float32).z.sum()

    with pytest.raises(RuntimeError, match=r"solve: expected to be differentiated by backward"):
        torch.func.grad(loss)(torch.zeros(6, 16))


def test_a_second_derivative() -> None:
    """That of a float state is right, of an exact one refused, as where hooks was named."""
    x = inputs()
    f = MLP()
    found = []
    for adjoint in ("auto", "backprop"):
        encoded = torch.sin(x)
        z = solve(
            lambda z, e=encoded: f(z, e),
            torch.zeros(6, 16),
            state=torch.float32,
            max_steps=2,
            adjoint=adjoint,
        ).z
        (first,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert torch.allclose(*found, atol=1e-5)
    encoded = torch.sin(x)
    z = solve(lambda z: f(z, encoded), torch.zeros(6, 16)).z
    with pytest.raises(RuntimeError, match="one derivative with state='exact'"):
        torch.autograd.grad(z.square().sum(), x, create_graph=True)


def test_a_closure_that_changes_between_evaluations_raises() -> None:
    x, f = inputs(), MLP()
    parts, calls = [torch.sin(x), torch.cos(x)], []

    def late(z: Tensor) -> Tensor:
        calls.append(1)
        return f(z) if len(calls) < 3 else f(z, parts[0])

    with pytest.raises(CaptureError, match=r"SinBackward0"):
        solve(late, torch.zeros_like(x))

    class Alternating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = 0

        def forward(self, z: Tensor) -> Tensor:
            self.k += 1
            return f(z, parts[self.k % 3 % 2])

    z = solve(Alternating(), torch.zeros_like(x), max_steps=4).z
    with pytest.raises((ReconstructionError, RuntimeError)):
        z.sum().backward()


def test_weights_that_functional_call_puts_in_place_are_no_closure() -> None:
    x = inputs()
    f: Any = TwoMaps()
    layer = RevDEQ(f, max_steps=2)
    weights = {f"f.{n}": torch.sin(p) for n, p in f.named_parameters()}
    functional_call(layer, weights, (x,)).sum().backward()
    assert layer.stats is not None and layer.stats.adjoint == "reversible"
    encoded = torch.cos(x)
    found = []
    for adjoint in ("auto", "backprop"):
        layer = RevDEQ(f, max_steps=2, adjoint=adjoint)
        f.context = encoded
        layer.f.forward = lambda z, x: TwoMaps.forward(f, z, x + f.context)
        weights = {f"f.{n}": torch.sin(p) for n, p in f.named_parameters()}
        f.zero_grad()
        x.grad = None
        functional_call(layer, weights, (x,)).square().sum().backward(retain_graph=True)
        assert layer.stats is not None
        assert adjoint == "backprop" or layer.stats.adjoint == "hooks"
        found.append([x.grad, *(p.grad for p in f.parameters())])
    assert all(map(torch.equal, *found))


def test_an_argument_that_is_no_pytree() -> None:
    class Graph:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    w, f = torch.randn(4, 16, requires_grad=True), TwoMaps()
    found = []
    for adjoint in ("auto", "backprop"):
        z = solve(
            lambda z, graph: f(z, graph.x),
            torch.zeros(4, 16),
            Graph(torch.sin(w)),
            adjoint=adjoint,
        ).z
        found.append(torch.autograd.grad(z.square().sum(), [w, *f.parameters()]))
    assert all(map(torch.equal, *found))
