"""The limit and its gradient: against long solves, against each other, and against torchdeq."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.solver.cells import MLP
from tests.tolerances import limit_error
from torch_revdeq import Anderson, Broyden, Picard, Relaxed, fixed_point, solve
from torch_revdeq.limit import relative_residual

F64 = torch.float64
SOLVERS = [Picard(), Relaxed(0.7), Anderson(), Anderson(memory=3, beta=0.8), Anderson(batched=True)]


def problem() -> tuple[MLP, Tensor]:
    """A cell that contracts."""
    torch.manual_seed(0)
    f = MLP(8, dtype=F64)
    with torch.no_grad():
        for p in f.parameters():
            p.mul_(0.6)
    return f, torch.randn(5, 8, dtype=F64, requires_grad=True)


def gradients(z: Tensor, f: MLP, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(z.square().sum(), [x, *f.parameters()])


def lipschitz(f: MLP) -> float:
    """Of f in z: tanh has slopes of at most 1."""
    a, b = (torch.linalg.matrix_norm(m.weight.detach(), 2) for m in (f.a, f.b))
    return float(a * b)


class Theorem:
    """The gradient of |z|^2 at the fixed point by the implicit function theorem, without iterating.

    w = (I - J^T)^-1 2 z, and the gradient with respect to a parameter is P^T w, with J and P the
    derivatives of f at z, here as matrices.
    """

    def __init__(self, z: Tensor, f: MLP, x: Tensor) -> None:
        self.z, self.lipschitz = z.detach().requires_grad_(), lipschitz(f)
        self.inputs = [x, *f.parameters()]
        out = f(self.z, x)
        rows = torch.eye(out.numel(), dtype=F64).view(-1, *out.shape)

        def derivative(of: Tensor) -> Tensor:
            found = torch.autograd.grad(out, of, rows, retain_graph=True, is_grads_batched=True)
            return found[0].flatten(1)

        j = derivative(self.z)
        self.derivatives = [derivative(of) for of in self.inputs]
        self.w = torch.linalg.solve(torch.eye(len(j), dtype=F64) - j.T, 2 * self.z.flatten())
        self.gradients = [(p.T @ self.w).detach() for p in self.derivatives]

    def holds(self, got: tuple[Tensor, ...], residual: float) -> None:
        """Gradients whose w has such a residual: off by (I - J^T)^-1, and P^T, times that at most.

        Everything is in float64; 1e-13 of the largest is for its roundings.
        """
        off = limit_error(residual, float(self.w.detach().norm()), self.lipschitz)
        for have, want, p in zip(got, self.gradients, self.derivatives, strict=True):
            bound = off * float(torch.linalg.matrix_norm(p.detach(), 2)) + 1e-13 * float(
                want.norm()
            )
            assert float((have.flatten() - want).norm()) <= bound


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_the_limit_and_its_gradient(solver: Any) -> None:
    """That of a solve that is long enough, and the gradient that the theorem gives there."""
    f, x = problem()
    long = solve(f, torch.zeros_like(x), x, max_steps=80, adjoint="backprop")
    found = fixed_point(f, torch.zeros_like(x), x, solver=solver, tol=1e-11, max_steps=200)
    stats = found.stats
    assert stats.converged and stats.residual < 1e-11 and stats.nfe == stats.steps + 2
    norm, residuals = float(long.z.detach().norm()), long.stats.residual + stats.residual
    assert float((found.z - long.z).detach().norm()) <= limit_error(residuals, norm, lipschitz(f))
    got = gradients(found.z, f, x)
    assert stats.adjoint_residual is not None and stats.adjoint_residual < 1e-11
    Theorem(found.z, f, x).holds(got, stats.adjoint_residual)
    assert stats.adjoint_steps is not None and stats.adjoint_steps > 1


def test_anderson_takes_fewer_steps() -> None:
    """On a linear problem that contracts slowly."""
    torch.manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, dtype=F64))
    matrix = rotation @ torch.diag(torch.linspace(-0.5, 0.97, 8, dtype=F64)) @ rotation.T
    x = torch.randn(8, dtype=F64)

    def steps(solver: Any) -> int:
        options: dict[str, Any] = {"solver": solver, "tol": 1e-9, "max_steps": 2000}
        return fixed_point(
            lambda z: z @ matrix + x, torch.zeros(8, dtype=F64), **options
        ).stats.steps

    assert steps(Anderson()) < 0.1 * steps(Picard())


def test_more_phantom_steps_come_nearer_to_the_limit() -> None:
    f, x = problem()
    z0 = torch.zeros_like(x)
    want = gradients(fixed_point(f, z0, x, tol=1e-11, max_steps=200).z, f, x)

    def error(steps: int) -> float:
        options: dict[str, Any] = {"adjoint": "phantom", "phantom_steps": steps}
        z = fixed_point(f, z0, x, tol=1e-11, max_steps=200, **options).z
        rows = zip(gradients(z, f, x), want, strict=True)
        return max(float((a - b).norm() / b.norm()) for a, b in rows)

    one, four, many = error(1), error(4), error(40)
    assert one > 0.01
    assert one > four > many
    # What 40 steps leave out is J'^40 of the seed, where J' = 0.2 + 0.8 J has a norm of 0.2 + 0.8 L
    # at the most; 100 is for how much of a seed the product with f's derivative may hide.
    assert many < 100 * (0.2 + 0.8 * lipschitz(f)) ** 40 < one


def test_closures_trees_hooks_and_16_bits() -> None:
    torch.manual_seed(0)
    w = (0.3 * torch.randn(4, 4)).requires_grad_()
    hidden = torch.sin(w)
    calls: list[int] = []
    w.register_hook(lambda g: calls.append(1))

    def f(z: dict[str, Tensor]) -> dict[str, Tensor]:
        b = (torch.tanh(z["a"] @ hidden) * 0.5).bfloat16()
        return {"a": 0.5 * torch.tanh(z["b"].float() @ w) + 0.1, "b": b}

    z0 = {"a": torch.zeros(3, 4), "b": torch.zeros(3, 4, dtype=torch.bfloat16)}
    found = fixed_point(f, z0, tol=1e-2)
    assert found.z["b"].dtype == torch.bfloat16
    found.z["a"].sum().backward()
    assert calls == [1]
    assert w.grad is not None and w.grad.abs().sum() > 0


def test_one_dropout_mask_serves_the_whole_solve() -> None:
    torch.manual_seed(0)
    f, x = MLP(8, p=0.3), torch.randn(5, 8)
    with torch.no_grad():
        for p in f.parameters():
            p.mul_(0.5)
    found = fixed_point(f, torch.zeros_like(x), x, tol=1e-5)
    assert found.stats.converged  # with another mask each time it would not
    found.z.sum().backward()
    assert f.a.weight.grad is not None


def test_not_converged_is_said() -> None:
    x = torch.ones(3, requires_grad=True)
    with pytest.warns(UserWarning, match=r"fixed_point: expected a residual below.*solve") as said:
        fixed_point(lambda z, x: 0.9 * z + x, torch.zeros(3), x, solver=Picard(), max_steps=3)
    assert said[0].filename == __file__
    found = fixed_point(
        lambda z, x: 0.9 * z + x,
        torch.zeros(3),
        x,
        solver=Picard(),
        max_steps=500,
        adjoint_max_steps=3,
    )
    with pytest.warns(UserWarning, match=r"the adjoint: expected a residual"):
        found.z.sum().backward()
    assert found.stats.adjoint_steps == 3


def test_second_derivatives_are_refused() -> None:
    f, x = problem()
    z = fixed_point(f, torch.zeros_like(x), x).z
    with pytest.raises(RuntimeError, match="create_graph=True; choose adjoint='phantom'"):
        torch.autograd.grad(z.sum(), x, create_graph=True)


def test_two_backward_passes() -> None:
    f, x = problem()
    loss = fixed_point(f, torch.zeros_like(x), x).z.sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(loss, x)[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)


def test_nothing_to_differentiate_and_no_grad() -> None:
    f, x = problem()
    f.requires_grad_(False)
    assert not fixed_point(f, torch.zeros_like(x), x.detach()).z.requires_grad
    with torch.no_grad():
        found = fixed_point(f, torch.zeros_like(x), x)
    assert not found.z.requires_grad and found.stats.nfe == found.stats.steps


def test_what_would_lose_the_gradient_is_refused() -> None:
    f, x = problem()
    torch.nn.utils.parametrizations.weight_norm(f.a)
    with torch.nn.utils.parametrize.cached(), pytest.raises(RuntimeError, match="cached"):
        fixed_point(f, torch.zeros_like(x), x)
    with pytest.raises(RuntimeError, match="f: expected not to modify its state"):
        fixed_point(lambda z: z.mul_(0.5), torch.ones(3))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("tol: expected", {"tol": -1.0}),
        ("max_steps: expected", {"max_steps": 0}),
        ("adjoint: expected 'implicit' or 'phantom'", {"adjoint": "reversible"}),
        ("adjoint_max_steps: expected", {"adjoint_max_steps": 0}),
        ("adjoint_tol: expected", {"adjoint_tol": -1.0}),
        ("phantom_steps: expected", {"phantom_steps": 0}),
        ("phantom_beta: expected", {"phantom_beta": 1.5}),
        ("phantom_beta: expected", {"phantom_beta": "x"}),
        ("z0: expected leaves with one first dimension", {"solver": Anderson(batched=True)}),
    ],
)
def test_errors(message: str, options: dict[str, Any]) -> None:
    z0 = [torch.zeros(3), torch.zeros(4)]
    with pytest.raises(ValueError, match=message):
        fixed_point(lambda z: [0.5 * t + 1 for t in z], z0, **options)


@pytest.mark.parametrize(
    ("name", "solver", "values"),
    [
        ("beta", Relaxed, [2.0, 0, "x", None, True, math.nan]),
        ("beta", Anderson, [1.5, 0, "x", None, True, math.nan]),
        ("beta", Broyden, [0, math.inf, "x", None, True, math.nan]),
        ("memory", Anderson, [1, 2.0, "x", None, True]),
        ("memory", Broyden, [0, 2.0, "x", None, True]),
        ("ridge", Anderson, [-1.0, "x", None, True, math.nan]),
        ("batched", Anderson, ["x", 1, None]),
        ("batched", Broyden, ["x", 1, None]),
    ],
)
def test_options_of_solvers(name: str, solver: Any, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}: expected .*, got {value!r}$"):
            solver(**{name: value})


def test_torchdeq_agrees() -> None:
    """The same limit and the same gradients from another library."""
    torchdeq = pytest.importorskip("torchdeq", reason="torchdeq is not installed")
    f, x = problem()
    deq = torchdeq.get_deq(
        f_solver="anderson",
        b_solver="anderson",
        f_max_iter=100,
        b_max_iter=100,
        f_tol=1e-10,
        b_tol=1e-10,
        ift=True,
    )
    theirs = deq(lambda z: f(z, x), torch.zeros_like(x))[0][-1]
    found = fixed_point(f, torch.zeros_like(x), x, tol=1e-10, max_steps=200)
    norm = float(theirs.detach().norm())
    left = float((theirs - f(theirs, x)).detach().norm()) / norm
    distance = float((found.z - theirs).detach().norm())
    assert distance <= limit_error(found.stats.residual + left, norm, lipschitz(f))
    Theorem(theirs, f, x).holds(gradients(theirs, f, x), 1e-10)  # their b_tol
    ours = gradients(found.z, f, x)
    assert found.stats.adjoint_residual is not None
    Theorem(found.z, f, x).holds(ours, found.stats.adjoint_residual)


@pytest.mark.parametrize(("steps", "tau"), [(1, 1.0), (3, 1.0), (2, 0.5)])
def test_torchdeqs_phantom_gradient(steps: int, tau: float) -> None:
    """As docs/from-torchdeq.md translates it: from the same limit the same gradient."""
    torchdeq = pytest.importorskip("torchdeq", reason="torchdeq is not installed")
    f, x = problem()
    z0 = torch.zeros_like(x)
    deq = torchdeq.get_deq(f_solver="anderson", f_max_iter=200, f_tol=1e-12, grad=steps, tau=tau)
    theirs = gradients(deq(lambda z: f(z, x), z0)[0][-1], f, x)
    options: dict[str, Any] = {"adjoint": "phantom", "phantom_steps": steps, "phantom_beta": tau}
    ours = gradients(fixed_point(f, z0, x, tol=1e-12, max_steps=200, **options).z, f, x)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


# ---- the trace ---------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [*SOLVERS, Broyden()], ids=str)
def test_a_trace_has_the_residual_of_every_evaluation(solver: Any) -> None:
    f, x = problem()
    z0, states = torch.zeros_like(x), []

    def seen(z: Tensor, x: Tensor) -> Tensor:
        states.append(z.detach().clone())
        return f(z, x)

    plain = fixed_point(f, z0, x, solver=solver)
    found = fixed_point(seen, z0, x, solver=solver, trace=True)
    residuals, steps = found.stats.residuals, found.stats.steps
    assert residuals is not None and residuals.shape == (steps,)
    want = [relative_residual([z], [f(z, x).detach()]) for z in states[:steps]]
    assert residuals.tolist() == want and found.stats.residual == min(want)
    assert torch.equal(found.z, plain.z)
    assert plain.stats.residuals is None and plain.stats.as_dict() == found.stats.as_dict()
    assert "residuals" not in repr(found.stats)


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_iter": 3}, r"; did you mean max_steps\?"),
        ({"f_tol": 1e-3}, r"; did you mean tol\?"),
        ({"ift": True}, r"; did you mean adjoint='implicit'\?"),
        ({"b_tol": 1e-3}, r"; did you mean adjoint_tol\?"),
        ({"f_solver": "anderson"}, r"; did you mean solver\?"),
        ({"beta": 0.5}, r"; did you mean solver=Relaxed\(beta\)\?"),
        ({"on_step": print}, "; on_step is an option of solve"),
        ({"save_at": [1]}, "; save_at is an option of solve"),
        ({"phantom_step": 3}, r"; did you mean phantom_steps\?"),
        ({"eval_factor": 2}, "; it has no counterpart: pass another max_steps="),
        ({"m": 5}, r"; did you mean solver=Anderson\(memory=\.\.\.\)\?"),
        ({"indexing": [1]}, r"; it has no counterpart: .*solve\(\.\.\., save_at=\) several"),
        ({"unheard": 1}, "trace$"),
    ],
)
def test_a_name_that_is_no_option_says_which_is(options: dict[str, Any], said: str) -> None:
    f, x = problem()
    (name,) = options
    with pytest.raises(TypeError, match=rf"^{name}: expected an option of fixed_point.*{said}"):
        fixed_point(f, torch.zeros_like(x), x, **options)


def test_a_trace_is_true_or_false() -> None:
    f, x = problem()
    with pytest.raises(TypeError, match="trace: expected True or False, got 1"):
        fixed_point(f, torch.zeros_like(x), x, trace=1)  # type: ignore[arg-type]
