"""Adjoints and stopping rules of the user's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cells import MLP
from solving import inputs
from torch_revdeq import Adjoint, RevDEQ, StoppingRule, solve
from torch_revdeq.adjoints import Backprop, Checkpoint, Functional, Hooks, Reversible
from torch_revdeq.options.table import LIMITED
from torch_revdeq.testing import assert_exact_gradients

F32 = torch.float32


class Largest(StoppingRule):
    """The largest difference of any element."""

    calls = 0

    def residual(self, y: Any, f: Any) -> Tensor:
        assert not torch.is_grad_enabled()
        self.calls += 1
        return (y - f).abs().max()


class Named(Backprop):
    name = "named"


def start() -> tuple[MLP, Tensor]:
    torch.manual_seed(0)
    return MLP(), inputs()


# ---- stopping rules ------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint", "backprop"])
@pytest.mark.parametrize("state", ["exact", torch.float32])
def test_a_rule_stops_where_its_residual_falls_below_tol(adjoint: Any, state: Any) -> None:
    f, x = start()
    rule, options = Largest(0.02), {"adjoint": adjoint, "state": state, "max_steps": 30}
    solution = solve(f, x, tol=rule, **options)
    steps = solution.stats.steps
    assert 1 < steps < 30 and solution.stats.converged and solution.stats.tol == 0.02
    assert solution.stats.residual < 0.02 and rule.calls == 0
    before = solve(f, x, tol=Largest(0.02), **{**options, "max_steps": steps - 1})
    assert not before.stats.converged and before.stats.residual >= 0.02
    fixed = solve(f, x, **{**options, "max_steps": steps})
    assert torch.equal(solution.z, fixed.z) and torch.equal(solution.y, fixed.y)


def test_a_rule_changes_no_gradient_and_sees_the_structure_of_z0() -> None:
    class OfParts(StoppingRule):
        def residual(self, y: Any, f: Any) -> Tensor:
            return torch.stack([(y[k] - f[k]).norm() for k in ("a", "b")]).max()

    w = torch.tensor(0.3, requires_grad=True)

    def f(z: dict[str, Tensor], w: Tensor) -> dict[str, Tensor]:
        return {"a": torch.tanh(w * z["b"] + 1), "b": torch.tanh(w * z["a"] - 1)}

    z0 = {"a": torch.zeros(4), "b": torch.zeros(2, 2)[0].repeat(2)}
    assert_exact_gradients(f, z0, w, tol=OfParts(1e-2), max_steps=20, check_every=2)
    assert solve(f, z0, w, tol=OfParts(1e-2), max_steps=20).stats.steps < 20


def test_each_solve_has_a_rule_of_its_own() -> None:
    seen: list[int] = []

    class Counting(Largest):
        def residual(self, y: Any, f: Any) -> Tensor:
            found = super().residual(y, f)
            seen.append(self.calls)
            return found

    f, x = start()
    layer = RevDEQ(f, tol=Counting(1e-9), max_steps=3)
    for _ in range(2):
        layer(x)
    assert seen == [1, 2, 3] * 2
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(RevDEQ(f, tol=Largest(0.1))))):
        assert isinstance(twin.options["tol"], Largest)
    assert "tol=Counting(tol=1e-09)" in repr(layer)


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (0.5, "0.5"),
        (torch.zeros(2), r"torch.float32 \(2,\)"),
        (torch.zeros(()) * 1j, r"torch.complex64 \(\)"),
    ],
)
def test_a_rule_that_returns_something_else(result: Any, got: str) -> None:
    class Wrong(StoppingRule):
        def residual(self, y: Any, f: Any) -> Any:
            return result

    f, x = start()
    with pytest.raises(TypeError, match=rf"tol: expected Wrong.residual to return .*, got {got}"):
        solve(f, x, tol=Wrong(0.1))


def test_what_does_not_go_with_a_rule() -> None:
    f, x = start()
    mask = torch.ones(x.shape[0], dtype=torch.bool)
    for name, value in {"per_sample": True, "residual_mask": mask}.items():
        with pytest.raises(ValueError, match=f"{name}: expected .* with a StoppingRule"):
            solve(f, x, tol=Largest(0.1), **{name: value})
    with pytest.raises(ValueError, match="tol: expected None with adjoint='functional'"):
        solve(f, x, tol=Largest(0.1), adjoint="functional", state=F32)
    for tol in (0, -1.0, True, float("nan"), "1"):
        with pytest.raises(ValueError, match="tol: expected a number above 0"):
            Largest(tol)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match=r"StoppingRule.residual: expected"):
        solve(f, x, tol=StoppingRule(0.1))
    with pytest.raises(TypeError, match=r"tol: expected a number or None in torch\.export and"):
        solve(torch.tanh, torch.zeros(3, device="meta"), tol=Largest(0.1))


# ---- adjoints ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("option", [option.name for option in LIMITED])
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
    if option == "process_group":
        pytest.skip("needs a group: tests/test_solve_options.py")
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

    with pytest.raises(RuntimeError, match="expected to read none of the buffers"):
        solve(Reads(), x, adjoint=Again())
    solve(Reads(), x, adjoint=Named()).z.sum().backward()
    with pytest.raises(RuntimeError, match=r"with adjoint='bare', got a transform"):
        torch.func.grad(lambda x: solve(torch.tanh, x, adjoint=Bare(), state=F32).z.sum())(x)


def test_no_adjoint() -> None:
    f, x = start()
    with pytest.raises(NotImplementedError, match=r"Adjoint.solve: expected to be defined"):
        solve(f, x, adjoint=Adjoint())
    with pytest.raises(ValueError, match=r"adjoint: expected one of .*, or an Adjoint, got"):
        solve(f, x, adjoint=Named)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"adjoint: expected a name in torch\.export and"):
        solve(torch.tanh, torch.zeros(3, device="meta"), adjoint=Named())
    assert repr(Functional()) == "Functional()"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # read by the compiler
def test_both_break_a_compiled_graph() -> None:
    f, x = start()
    options: dict[str, Any] = {"tol": Largest(0.02), "adjoint": Named(), "max_steps": 20}
    compiled = torch.compile(lambda x: solve(f, x, **options).z, backend="eager")
    assert torch.equal(compiled(x), solve(f, x, **options).z)
