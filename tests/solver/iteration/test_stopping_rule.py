"""Stopping rules of the user's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.solver.cells import cell_and_input
from torch_revdeq import RevDEQ, StoppingRule, fixed_point, solve
from torch_revdeq.testing import assert_exact_gradients

F32 = torch.float32


class Largest(StoppingRule):
    """The largest difference of any element."""

    calls = 0

    def residual(self, y: Any, f: Any) -> Tensor:
        assert not torch.is_grad_enabled()
        self.calls += 1
        return (y - f).abs().max()


def start() -> tuple[nn.Module, Tensor]:
    return cell_and_input("mlp")


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


ADJOINTS: list[Any] = ["reversible", "hooks", "checkpoint", "backprop"]


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_what_a_rule_keeps_and_writes_is_its_own(adjoint: Any) -> None:
    """It measures the change from step to step, and spoils what it was given."""

    class Change(StoppingRule):
        last: Tensor | None = None

        def residual(self, y: Tensor, f: Tensor) -> Tensor:
            found = y.new_ones(()) if self.last is None else (y - self.last).norm()
            self.last = y.clone()
            y.fill_(7.0)
            f.fill_(9.0)
            return found

    f, x = start()
    options = {"adjoint": adjoint, "max_steps": 40, "check": False}
    solution = solve(f, x, tol=Change(1e-3), **options)
    steps = solution.stats.steps
    assert 3 < steps < 40
    plain = solve(f, x, **{**options, "max_steps": steps})
    assert torch.equal(solution.z, plain.z)
    found = [torch.autograd.grad(s.z.square().sum(), [*f.parameters()]) for s in (solution, plain)]
    assert all(map(torch.equal, *found))


def test_a_rule_that_keeps_the_tensors_it_was_given() -> None:
    class Change(Largest):
        last: Any = None

        def residual(self, y: Any, f: Any) -> Tensor:
            last, self.last = self.last, y
            return torch.ones(()) if last is None else (y - last).norm()

    f, x = start()
    steps = [solve(f, x, tol=Change(1e-3), max_steps=40, adjoint=a).stats.steps for a in ADJOINTS]
    assert steps[0] > 3 and len({*steps}) == 1


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_rule_that_draws_random_numbers_disturbs_none_of_fs(adjoint: Any) -> None:
    class Drawing(Largest):
        def residual(self, y: Any, f: Any) -> Tensor:
            return super().residual(y * torch.rand(()), f)

    f, x = start()
    for cell in (f, nn.Sequential(f, nn.Dropout(0.5))):
        torch.manual_seed(3)
        with_rule = solve(cell, x, tol=Drawing(1e-9), max_steps=3, adjoint=adjoint)
        torch.manual_seed(3)
        plain = solve(cell, x, max_steps=3, adjoint=adjoint)
        assert torch.equal(with_rule.z, plain.z)
        with_rule.z.sum().backward()


def test_the_residual_of_a_solve_stays_what_it_was() -> None:
    class Reusing(StoppingRule):
        def __init__(self) -> None:
            super().__init__(1e-9)
            self.found = torch.ones((), dtype=torch.float64, requires_grad=True)

        def residual(self, y: Any, f: Any) -> Tensor:
            return self.found.mul_(0.5)

    f, x = start()
    rule = Reusing()
    first = solve(f, x, tol=rule, max_steps=1).stats
    solve(f, x, tol=rule, max_steps=1)
    assert first.residual == 0.5


def test_a_rule_that_is_not_made_as_it_should_be() -> None:
    class Bare(Largest):
        def __init__(self) -> None:
            pass

    class Ended(Largest):
        def begin(self) -> Any:
            return None

    f, x = start()
    with pytest.raises(ValueError, match=r"expected Bare.tol to be a number above 0, got None"):
        solve(f, x, tol=Bare())
    assert repr(Bare()) == "Bare(tol=None)"
    with pytest.raises(TypeError, match=r"expected Ended.begin to return a StoppingRule, got None"):
        solve(f, x, tol=Ended(0.1))
    with pytest.raises(TypeError, match=r"tol: expected an instance of Largest, got the class"):
        solve(f, x, tol=Largest)  # type: ignore[arg-type]
    assert Largest(np.float32(0.5)).tol == 0.5  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tol: expected a number of at least 0"):
        fixed_point(f, x, tol=Largest(0.1))  # type: ignore[arg-type]


def test_what_does_not_go_with_a_rule() -> None:
    f, x = start()
    mask = torch.ones(x.shape[0], dtype=torch.bool)
    for name, value in {"per_sample": True, "residual_mask": mask}.items():
        with pytest.raises(ValueError, match=f"{name}: expected .* with a StoppingRule"):
            solve(f, x, tol=Largest(0.1), **{name: value})
    for name, value in {"save_at": [1], "backward_steps": 1}.items():
        with pytest.raises(ValueError, match=f"{name}: expected no tol in addition"):
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


def test_a_compiled_graph_breaks_there() -> None:
    f, x = start()
    options: dict[str, Any] = {"tol": Largest(0.02), "max_steps": 20}
    compiled = torch.compile(lambda x: solve(f, x, **options).z, backend="eager")
    assert torch.equal(compiled(x), solve(f, x, **options).z)
