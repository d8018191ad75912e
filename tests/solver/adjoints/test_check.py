"""The self check: a gradient that would be wrong is an error, on a GPU without a stall."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.solver.cells import Block, cell_and_input
from tests.tolerances import reconstruction_bound
from torch_revdeq import RangeError, ReconstructionError, solve
from torch_revdeq.adjoints import problem, reconstruction
from torch_revdeq.runtime import deferred as late
from torch_revdeq.testing import assert_exact_gradients


def cell() -> tuple[Any, Tensor]:
    return cell_and_input("mlp")


ADJOINTS = ["reversible", "hooks"]


# ---- what it finds ---------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("size", [1e-1, 1e-7])
def test_a_parameter_changed_through_data(adjoint: str, size: float) -> None:
    """The smallest change of one weight that a float32 holds is seen, too."""
    f, x = cell()
    z = solve(f, x, adjoint=adjoint).z  # type: ignore[arg-type]
    f.a.weight.data += size
    with pytest.raises(ReconstructionError, match=r"through \.data"):
        z.sum().backward()
    assert f.a.weight.grad is None


def test_a_frozen_parameter_changed() -> None:
    """Autograd does not watch it; the check does."""
    f, x = cell()
    f.a.weight.requires_grad_(False)
    z = solve(f, x).z
    f.a.weight.mul_(1.01)
    with pytest.raises(ReconstructionError, match="while it was frozen"):
        z.sum().backward()


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_counter_in_f(adjoint: str) -> None:
    calls: list[int] = []

    def f(z: Tensor) -> Tensor:
        calls.append(1)
        return torch.tanh(z) / len(calls)

    z = solve(f, torch.ones(4, requires_grad=True), adjoint=adjoint).z  # type: ignore[arg-type]
    with pytest.raises(ReconstructionError, match="a counter or other internal state"):
        z.sum().backward()


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize(
    ("state", "beta", "steps"),
    [
        (torch.float32, 0.5, 24),
        (torch.float32, 0.8, 12),
        (torch.float64, 0.9, 24),
        (torch.bfloat16, 0.5, 4),
    ],
    ids=str,
)
def test_past_the_precision_cliff(
    adjoint: str, state: torch.dtype, beta: float, steps: int
) -> None:
    f, x = cell_and_input("block")
    x = x.detach().to(torch.float32 if state == torch.float64 else state)
    f = f.to(x.dtype)
    options = {"beta": beta, "max_steps": steps}
    z = solve(f, torch.zeros_like(x), x, state=state, adjoint=adjoint, **options).z  # type: ignore[arg-type]
    with pytest.raises(ReconstructionError, match=r"precision limit.*state='exact'"):
        z.sum().backward()
    assert_exact_gradients(f, torch.zeros_like(x), x, **options)


def test_before_the_cliff_nothing_is_raised() -> None:
    f, x = cell_and_input("block")
    stats = assert_exact_gradients(f, torch.zeros_like(x), x, max_steps=4, state=torch.float32)
    back = reconstruction_bound(torch.float32, 0.5, 4, lipschitz=2.0, magnitude=4.0)
    assert stats.reconstruction_error is not None and 0 < stats.reconstruction_error <= back


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("state", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("check", [True, 1e300])
@pytest.mark.parametrize("options", [{}, {"tol": 0.1, "per_sample": True}], ids=str)
def test_a_float_state_that_is_not_finite(
    adjoint: str, state: torch.dtype, check: bool | float, options: dict[str, Any]
) -> None:
    """Where relu of NaN would have a gradient, from each place; Inf - Inf is no distance of 0."""
    dtype = torch.bfloat16 if state == torch.bfloat16 else torch.float32
    for place, bad in itertools.product(("z0", "u", "w"), (math.nan, math.inf)):
        z0, u, w = (torch.full(shape, 0.1, dtype=dtype) for shape in ((4, 8), (4, 8), (8, 8)))
        {"z0": z0, "u": u, "w": w}[place][1, 3] = bad

        def f(z: Tensor, u: Tensor, w: Tensor) -> Tensor:
            return torch.relu(z @ w + u)

        args = (z0.requires_grad_(), u.requires_grad_(), w.requires_grad_())
        shared: Any = {"adjoint": adjoint, "state": state, "check": check, "max_steps": 2}
        z = solve(f, *args, **shared, **options).z
        with pytest.raises(ReconstructionError, match="became NaN or infinite"):
            torch.autograd.backward(z, torch.ones_like(z))


def test_tolerances_and_no_check() -> None:
    f, x = cell_and_input("block")

    def error(check: bool | float) -> float | None:
        solution = solve(f, torch.zeros_like(x), x, max_steps=5, state=torch.float32, check=check)
        solution.z.sum().backward()
        return solution.stats.reconstruction_error

    with pytest.raises(ReconstructionError, match="tolerance 1e-09"):
        error(1e-9)
    assert error(False) is None
    assert error(True) == error(0.5) != 0


def test_a_second_backward_pass_is_checked_too() -> None:
    f, x = cell()
    loss = solve(f, x).z.sum()
    loss.backward(retain_graph=True)
    f.b.bias.data += 1.0
    with pytest.raises(ReconstructionError):
        loss.backward()


def test_hooks_notice_an_f_that_saves_other_tensors() -> None:
    """The values are the same, what autograd needs for them is not."""
    calls: list[int] = []

    def f(z: Tensor) -> Tensor:
        calls.append(1)
        return torch.tanh(z) if len(calls) <= 16 else torch.tanh(z.exp().log() * 0 + z)

    z = solve(f, torch.ones(4, requires_grad=True), adjoint="hooks").z
    with pytest.raises(RuntimeError, match="f: expected to save the same tensors"):
        z.sum().backward()


# ---- on a device that must not stall ---------------------------------------------------------


@pytest.fixture
def deferred(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Checks as on a GPU, on CPU tensors."""
    monkeypatch.setattr(late, "deferred", lambda device: True)
    monkeypatch.setattr(reconstruction, "deferred", lambda device: True)
    monkeypatch.setattr(problem, "deferred", lambda device: True)
    yield
    late.deferred_checks.waiting.clear()


@pytest.mark.usefixtures("deferred")
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("where", ["verify", "next solve"])
def test_a_wrong_gradient_becomes_nan_and_the_error_comes_later(adjoint: str, where: str) -> None:
    f, x = cell()
    solution = solve(f, x, adjoint=adjoint)  # type: ignore[arg-type]
    f.a.weight.data += 0.1
    solution.z.sum().backward()
    grads = [p.grad for p in f.parameters()]
    if adjoint == "reversible":
        assert x.grad is not None and x.grad.isnan().all()
        assert all(g is not None and g.isnan().all() for g in grads)
    else:
        assert any(g is not None and g.isnan().any() for g in grads)
    with pytest.raises(ReconstructionError, match=r"relative error.*the gradient would be wrong"):
        solution.verify() if where == "verify" else solve(f, x)
    with pytest.raises(ReconstructionError):
        solution.verify()  # as often as it is asked
    solve(f, x)  # once is enough


@pytest.mark.usefixtures("deferred")
def test_a_right_gradient_stays_as_it_is() -> None:
    f, x = cell()
    solution = solve(f, x)
    (got,) = torch.autograd.grad(solution.z.sum(), x)
    (want,) = torch.autograd.grad(solve(f, x, adjoint="backprop").z.sum(), x)
    assert torch.equal(got, want)
    solution.verify()
    assert solution.stats.reconstruction_error == 0.0


@pytest.mark.usefixtures("deferred")
def test_a_state_out_of_range_becomes_nan() -> None:
    z0 = torch.ones(4, requires_grad=True)
    solution = solve(lambda z: z * 40.0, z0, max_steps=30, frac_bits=20)
    assert solution.z.isnan().all() and solution.y.isnan().all()
    with pytest.raises(RangeError):
        solution.verify()


@pytest.mark.usefixtures("deferred")
@pytest.mark.parametrize("adjoint", [*ADJOINTS, "backprop", "checkpoint"])
@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6])
def test_the_gradients_of_a_state_out_of_range_are_nan(
    adjoint: str, check: bool, bad: float
) -> None:
    """It comes back, and the gradients that arrive are finite: where relu is 0, so would these."""
    z0, u = torch.ones(4, 8, requires_grad=True), torch.ones(4, 8)
    u[1, 3] = bad
    u.requires_grad_()
    options: Any = {"adjoint": adjoint, "check": check, "frac_bits": 16, "max_steps": 3}
    solution = solve(lambda z, u: torch.relu(0.1 * z + u), z0, u, **options)
    torch.autograd.backward([solution.z], [torch.ones_like(solution.z)])
    for grad in (z0.grad, u.grad):
        assert grad is not None and bool(grad.isnan().all())
    with pytest.raises(RangeError):
        solution.verify()


def test_a_check_that_nobody_reads_is_reported_at_exit() -> None:
    program = """
import torch
from torch_revdeq import solve
from torch_revdeq.adjoints import reconstruction
from torch_revdeq.runtime import deferred as late
late.deferred = reconstruction.deferred = lambda device: True
w = torch.ones(4, requires_grad=True)
z = solve(lambda z: torch.tanh(z * w), torch.ones(4)).z
w.data += 1
z.sum().backward()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert re.search("check failed and was never read: solve: reversing the", done.stderr)


# ---- assert_exact_gradients ------------------------------------------------------------------


def test_the_helper_finds_a_wrong_gradient() -> None:
    """A float state that has lost its precision, with its own check off."""
    f, x = cell_and_input("block")
    assert isinstance(f, Block)
    with pytest.raises(AssertionError, match=r"the gradient of .*expected the value of stored"):
        assert_exact_gradients(
            f, torch.zeros_like(x), x, max_steps=24, state=torch.float32, check=False
        )


def test_the_helper_compares_what_f_returned_beside_the_state() -> None:
    f, x = cell()
    scale = torch.ones((), requires_grad=True)
    calls = iter(range(1000))

    def with_cost(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return f(z, x), (scale * z).square().mean()

    def with_another_cost(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return f(z, x), scale + next(calls)

    z0 = torch.zeros_like(x)
    assert_exact_gradients(with_cost, z0, x, has_aux=True, max_steps=3)
    with pytest.raises(AssertionError, match="output 2"):
        assert_exact_gradients(
            with_another_cost, z0, x, has_aux=True, max_steps=3, adjoint="backprop"
        )


def test_the_helper_leaves_no_gradients_and_no_statistics() -> None:
    f, x = cell()
    f.a.weight.grad = torch.ones_like(f.a.weight)
    assert_exact_gradients(f, x, x)
    assert torch.equal(f.a.weight.grad, torch.ones_like(f.a.weight))
    assert x.grad is None and f.b.weight.grad is None


@pytest.mark.parametrize("adjoint", [None, "auto", "hooks", "checkpoint"])
def test_the_helper_takes_what_f_closes_over(adjoint: str | None) -> None:
    """By default as ``solve`` does; the graph that both solves lead into is left as it was."""
    f, x = cell()
    embedded = torch.sin(x)
    options: dict[str, Any] = {"adjoint": adjoint} if adjoint else {}
    stats = assert_exact_gradients(lambda z: f(z, embedded), torch.zeros_like(x), **options)
    assert stats.adjoint == ("checkpoint" if adjoint == "checkpoint" else "hooks")
    embedded.sum().backward()
    assert x.grad is not None
    assert assert_exact_gradients(f, torch.zeros_like(x), x).adjoint == "reversible"


def test_the_helper_frees_the_graphs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a training step does: a graph that is kept takes another way through the walk back."""
    kept: list[bool] = []
    inner = torch.autograd.grad

    def grad(*args: Any, **options: Any) -> Any:
        kept.append(options.get("retain_graph", False))
        return inner(*args, **options)

    f, x = cell()
    with monkeypatch.context() as patched:
        patched.setattr(torch.autograd, "grad", grad)
        assert_exact_gradients(f, torch.zeros_like(x), x, adjoint="reversible", max_steps=2)
    assert not any(kept)
