"""torch.compile of f, and of a model around the solver: one graph, the gradients of eager mode."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests import ROOT
from tests.solver.cells import MLP
from tests.solver.compile.compiling import (
    Model,
    assert_like_eager,
    assert_same,
    gradients,
    whole,
)
from tests.tolerances import assert_within, gradient_bound, reconstruction_bound
from torch_revdeq import Solution, solve
from torch_revdeq.compile import operator
from torch_revdeq.testing import assert_exact_gradients

# ---- a compiled f --------------------------------------------------------------------------------


def test_a_compiled_f_is_compiled_once() -> None:
    f, x = MLP(), torch.randn(6, 16)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, backend=counter)
    assert_exact_gradients(compiled, torch.zeros_like(x), x, max_steps=5)
    count = counter.frame_count
    for _ in range(3):
        solve(compiled, torch.zeros_like(x), x).z.sum().backward()
    assert counter.frame_count == count >= 1


@pytest.mark.slow
def test_a_compiled_f_with_inductor() -> None:
    f, x = MLP(), torch.randn(6, 16)
    assert_exact_gradients(torch.compile(f), torch.zeros_like(x), x, max_steps=5)


@pytest.mark.slow
def test_dropout_compiled_by_inductor_comes_again() -> None:
    """Its masks are not eager's of that seed, but the same in both passes and under no_grad."""
    f, x = MLP(p=0.5), torch.randn(6, 16)
    compiled = torch.compile(f)
    found = []
    for adjoint in ("reversible", "backprop", None):
        torch.manual_seed(1)
        with torch.set_grad_enabled(adjoint is not None):
            options: dict[str, Any] = {} if adjoint is None else {"adjoint": adjoint}
            solution = solve(compiled, torch.zeros_like(x), x, max_steps=3, **options)
        ends = [solution.z]
        if adjoint is not None:
            ends += torch.autograd.grad(solution.z.square().sum(), [*f.parameters()])
        found.append(ends)
    assert all(map(torch.equal, *found[:2])) and torch.equal(found[2][0], found[0][0])
    torch.manual_seed(1)
    assert not torch.allclose(solve(f, torch.zeros_like(x), x, max_steps=3).z, found[0][0])


# ---- a solve as an operator ----------------------------------------------------------------------

OPTIONS = [
    {},
    {"state": torch.float32},
    {"tol": 1e-3, "max_steps": 40},
    {"store_last": 2},
    {"beta": [0.5, 0.8, 0.6]},
    {"adjoint": "hooks"},
    {"adjoint": "backprop", "state": torch.float64},
    {"adjoint": "checkpoint"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_model_is_one_graph_with_the_gradients_of_eager_mode(options: dict[str, Any]) -> None:
    model, x = Model(**options), torch.randn(6, 16)
    counter = CompileCounterWithBackend("aot_eager")
    want = gradients(model, model, x)
    steps = model.equilibrium.stats.steps
    assert_same(gradients(model, whole(model, counter), x), want)
    assert counter.frame_count == 1
    assert model.equilibrium.stats.steps == steps
    gc.collect()
    assert not operator._records  # what a run kept is gone with its graph


def test_sizes_that_vary_are_compiled_for_once() -> None:
    model, counter = Model(), CompileCounterWithBackend("aot_eager")
    compiled = whole(model, counter)
    for size in (6, 6, 3, 9, 5, 12):
        x = torch.randn(size, 16)
        assert_like_eager(model, compiled, x)
    assert counter.frame_count == 2


def test_the_graph_does_not_grow_with_the_steps() -> None:
    counts = []
    for steps in (2, 50):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("aot_eager")
        whole(Model(max_steps=steps), counter)(torch.randn(6, 16))
        counts.append(counter.op_count)
    assert counts[0] == counts[1]


def test_autocast_is_carried_into_it() -> None:
    model, x = Model(), torch.randn(6, 16)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    assert_like_eager(model, whole(run), x, eager=run)
    assert model.equilibrium.stats.frac_bits == 16
    with torch.autocast("cpu", torch.bfloat16):  # entered outside of the graph
        z = whole(model)(x)
    assert torch.equal(z, run(x))


def test_no_grad() -> None:
    model, x = Model(), torch.randn(6, 16)
    compiled = whole(model)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(compiled(x), model(x))
    assert not operator._records


def test_dropout_comes_again() -> None:
    model, x = Model(), torch.randn(6, 16)
    model.equilibrium.f = MLP(p=0.3)
    torch.manual_seed(1)
    want = gradients(model, model, x)
    torch.manual_seed(1)
    assert_same(gradients(model, whole(model), x), want)
    assert model.equilibrium.stats.reconstruction_error == 0.0


class Everything(nn.Module):
    """Pytrees, arguments that are no tensors, y0, a beta that learns, outputs on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.a, self.raw = (
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Parameter(torch.ones(())),
        )
        self.f = Cell(self.a)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.encoder(x))
        z0, y0 = {"h": x * 0.5, "c": x[:, :1]}, {"h": x, "c": -x[:, :1]}
        solution = solve(
            self.f, z0, [x, 0.5], y0=y0, beta=0.3 + 0.4 * torch.sigmoid(self.raw), save_at=[1, 3]
        )
        ends = (solution.z, solution.y, *solution.saved)
        return torch.cat([leaf for end in ends for leaf in (end["h"], end["c"])], 1)


class Cell(nn.Module):
    def __init__(self, a: nn.Module) -> None:
        super().__init__()
        self.a = a

    def forward(self, z: dict[str, Tensor], context: list[Any]) -> dict[str, Tensor]:
        x, gain = context
        h = torch.tanh(self.a(z["h"]) + x)
        return {"h": gain * h, "c": torch.tanh(h.mean(1, keepdim=True) + z["c"])}


def test_everything_a_call_can_hold() -> None:
    model, x = Everything(), torch.randn(5, 8)
    assert_like_eager(model, whole(model), x)


def test_a_whole_solution_may_leave_the_graph() -> None:
    f, x = MLP(), torch.randn(6, 16)
    solution = whole(lambda x: solve(f, torch.zeros_like(x), x, max_steps=4))(x)
    assert isinstance(solution, Solution)
    assert solution.stats.steps == 4
    solution.z.sum().backward()
    solution.verify()
    assert solution.stats.reconstruction_error == 0.0


def test_two_runs_of_one_graph_before_their_backward_passes() -> None:
    model, x = Model(), torch.randn(2, 6, 16)
    compiled = whole(model)
    twice = lambda run: lambda x: run(x[0]) * run(x[1])  # noqa: E731
    assert_like_eager(model, twice(compiled), x, eager=twice(model))


def test_a_compiled_cell_is_called_as_it_was_compiled() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    model, x = Model(), torch.randn(6, 16)
    want = gradients(model, model, x)
    model.equilibrium.f.compile(backend=counter)
    assert_same(gradients(model, whole(model), x), want)
    assert counter.frame_count >= 1
    counter.clear()
    torch.compiler.reset()
    other = Model()
    other.equilibrium.f = torch.compile(other.equilibrium.f, backend=counter)
    gradients(other, whole(other), x)
    assert counter.frame_count >= 1


def test_copies_of_a_layer_solve_with_weights_of_their_own() -> None:
    model, x = Model(), torch.randn(6, 16)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.equilibrium.f.a.weight.mul_(0.5)
    for each in (model, other):
        assert_like_eager(each, whole(each), x)


def test_frozen_parameters_and_hooks() -> None:
    model, x = Model(), torch.randn(6, 16)
    cell = model.equilibrium.f
    cell.a.bias.requires_grad_(False)
    cell.b.weight.register_hook(lambda grad: 2 * grad)
    assert_like_eager(model, whole(model), x)


class Reusing(nn.Module):
    """Between operations whose results a compiler writes into memory that was read before."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.f = nn.Linear(16, 16), MLP()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.encoder(x))
        z = solve(self.f, torch.zeros_like(x), torch.sin(x), max_steps=3).z
        u = self.encoder(torch.cos(z * x + 1))
        return u * torch.exp(-u * u)


@pytest.mark.slow
@pytest.mark.parametrize("model", [Model, Everything, Reusing])
def test_with_inductor(model: type[nn.Module]) -> None:
    made: Any = model().double()
    x = torch.randn(6, made.encoder.in_features, dtype=torch.float64)
    got, want = gradients(made, whole(made, "inductor"), x), gradients(made, made, x)
    # Sums in another order, so also other roundings to walk back from: in each of 8 steps at most.
    back = reconstruction_bound(torch.float64, 0.7, 8, lipschitz=1.0, magnitude=4.0)
    assert_within(got, want, gradient_bound(torch.float64, back, 8, curvature=1.0, terms=64))


IMPORTED_IN_INFERENCE = """
import torch
with torch.inference_mode():
    from torch_revdeq import RevDEQ
layer, x = RevDEQ(torch.nn.Bilinear(4, 4, 4), max_steps=2), torch.randn(3, 4)
run = torch.compile(layer, backend="aot_eager", fullgraph=True)
found = [torch.autograd.grad(f(x).sum(), list(layer.parameters())) for f in (layer, run)]
assert all(map(torch.equal, *found)) and found[1][0].abs().max() > 0
"""


def test_where_it_was_imported_does_not_matter() -> None:
    """An operator is differentiated as in a thread at rest, not as in the one that imported it."""
    subprocess.run([sys.executable, "-c", IMPORTED_IN_INFERENCE], check=True, cwd=ROOT)


def test_opcheck() -> None:
    f, x = MLP(), torch.randn(3, 16, requires_grad=True)
    values = {
        "layer": False,
        "z0": 0,
        "call": ([0], {"beta": 1, "max_steps": 2}),
        "leaves": [("tensor", 0, None), ("float", 0, None), ("int", 0, None)],
        "saves": 0,
        "aux": None,
        "steps": 0,
        "inductor": False,
    }
    plan = operator.CallSite(f, values, ())
    parameters, gain = list(f.parameters()), torch.tensor(0.5, dtype=torch.float64)
    args = ([torch.zeros(3, 16)], [x], [gain], [2], parameters, plan.key, [False, True], True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.torch_revdeq.solve.default, args, test_utils=checks)
