"""torch.compile of a layer whose numbers change from call to call: each call has its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import InternalTorchDynamoError
from torch._dynamo.testing import CompileCounterWithBackend
from torch.torch_version import TorchVersion
from torch.utils import _pytree as pytree

from tests.solver.compile.compiling import assert_like_eager, found, whole
from torch_revdeq import RevDEQ, solve


class Scaled(nn.Module):
    """A cell whose input is scaled by whatever numbers it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.of_z = nn.Linear(4, 4)
        self.gain = 1.0

    def forward(self, z: Tensor, x: Tensor, *given: Any) -> Tensor:
        scale = self.gain
        for value in pytree.tree_leaves(given):
            scale = scale * (3.0 if value is None else len(value) if value == "ab" else value)
        return torch.tanh(self.of_z(z) + scale * x)


def layer_of(**options: Any) -> RevDEQ:
    return RevDEQ(Scaled(), **{"max_steps": 3, **options})


ARGUMENTS: dict[str, tuple[Callable[[int], Any], int]] = {
    "float": (lambda i: 0.1 * i, 2),
    "int": (lambda i: i, 2),
    "list": (lambda i: [0.3 * i, {"a": i + 2}], 2),
    "bool": (lambda i: i % 2 == 0, 2),
    "None or a float": (lambda i: None if i % 2 else 0.5, 2),
    "a string or a float": (lambda i: "ab" if i % 2 else 0.5, 2),
}
"""An argument of call i, and the graphs that serve ten of them, at most."""


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_that_changes(name: str, dynamic: bool | None) -> None:
    make, most = ARGUMENTS[name]
    layer, counter = layer_of(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=dynamic)
    for i in range(10):
        x = torch.randn(3, 4)
        assert_like_eager(layer, compiled, x, make(i))
    assert counter.frame_count <= most


def anneal(layer: RevDEQ, i: int) -> None:
    layer.beta = 0.5 + 0.04 * i


def anneal_each(layer: RevDEQ, i: int) -> None:
    layer.beta = [0.5 + 0.04 * i, 0.6, 0.3 + 0.02 * i]


def another_function(layer: RevDEQ, i: int) -> None:
    layer.beta = lambda n, i=i: 0.3 + 0.1 * n + 0.05 * i


def another_closure(layer: RevDEQ, i: int) -> None:
    layer.options["max_steps"] = lambda: 1 + i


def tighten(layer: RevDEQ, i: int) -> None:
    layer.options["tol"] = 0.3 / (i + 1)


def deepen(layer: RevDEQ, i: int) -> None:
    layer.options["max_steps"] = 1 + i


def loosen(layer: RevDEQ, i: int) -> None:
    layer.options["check"] = 0.1 * (i + 1)


CHANGES = (anneal, anneal_each, another_function, another_closure, tighten, deepen, loosen)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("change", CHANGES)
def test_an_option_that_changes(change: Callable[..., None], dynamic: bool | None) -> None:
    layer, counter = layer_of(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=dynamic)
    seen = []
    for i in range(6):
        change(layer, i)
        x = torch.ones(3, 4)
        got, want = (found(layer, run, x) for run in (compiled, layer))
        assert all(map(torch.equal, got, want))
        seen.append(got[0])
    if change is not loosen:  # it changes no number but the check's own
        assert not torch.equal(seen[0], seen[-1])
    if change in (anneal, anneal_each, tighten, loosen):
        assert counter.frame_count <= 2


@pytest.mark.parametrize("change", [anneal, deepen])
def test_a_traced_solve_is_traced_anew(change: Callable[..., None]) -> None:
    options: dict[str, Any] = {"adjoint": "functional", "state": torch.float32, "rng": "none"}
    layer = layer_of(**options)
    compiled = whole(layer)
    for i in range(4):
        change(layer, i)
        x = torch.randn(3, 4)
        assert_like_eager(layer, compiled, x, 0.2 * i)


def test_numbers_of_a_solve_in_a_function() -> None:
    f = Scaled()

    def run(x: Tensor, beta: float, steps: int) -> Tensor:
        z0 = torch.zeros_like(x)
        return solve(f, z0, x, beta=lambda n: beta / (n + 1), max_steps=steps, tol=beta / 100).z

    compiled = whole(run)
    for i in range(5):
        x = torch.randn(3, 4)
        given = (0.4 + 0.1 * i, 2 + i)
        assert_like_eager(f, compiled, x, *given, eager=run)


def test_an_attribute_that_f_reads_is_read_when_it_runs() -> None:
    layer = layer_of()
    compiled = whole(layer)
    for gain in (1.0, 0.5, 2.0):
        layer.f.gain = gain  # type: ignore[union-attr]
        x = torch.randn(3, 4)
        assert_like_eager(layer, compiled, x)


class Settings:
    def __init__(self, gain: float) -> None:
        self.gain = gain

    def draw(self) -> int:
        return round(self.gain * 10)


def test_other_objects_break_the_graph_and_say_why() -> None:
    f = Scaled()

    reads = _Reads(f)

    def argument(x: Tensor, settings: Settings) -> Tensor:
        return solve(reads, torch.zeros_like(x), x, settings).z

    def option(x: Tensor, settings: Settings) -> Tensor:
        return solve(f, torch.zeros_like(x), x, max_steps=settings.draw).z

    def closure(x: Tensor, settings: Settings) -> Tensor:
        gain = settings.gain
        return solve(f, torch.zeros_like(x), x, max_steps=lambda: round(gain * 10)).z

    for run in (argument, option, closure):
        torch.compiler.reset()
        compiled = torch.compile(run, backend="aot_eager")
        if run is closure and torch.__version__ >= TorchVersion("2.14"):
            # Works while the number is a constant of the graph; then Dynamo cannot break there.
            assert_like_eager(f, compiled, torch.randn(3, 4), Settings(0.1), eager=run)
            with pytest.raises(InternalTorchDynamoError, match="closure cell"):
                compiled(torch.randn(3, 4), Settings(0.2))
            continue
        for gain in (0.1, 0.2, 0.3):
            x = torch.randn(3, 4)
            given = Settings(gain)
            assert_like_eager(f, compiled, x, given, eager=run)
        torch.compiler.reset()
        with pytest.raises(Exception, match="solve: expected tensors, numbers, strings and plain"):
            whole(run)(torch.randn(3, 4), Settings(0.1))


class _Reads(nn.Module):
    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, z: Tensor, x: Tensor, settings: Settings) -> Tensor:
        return self.f(z, x, settings.gain)
