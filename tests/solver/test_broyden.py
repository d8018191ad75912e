"""Broyden's method: against its definition, theory, SciPy and torchdeq; where f overflows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_revdeq import Anderson, Broyden, Picard, fixed_point
from torch_revdeq.limit import relative_residual
from torch_revdeq.limit.broyden import _Best, _Updates

F64 = torch.float64
Function = Callable[[Tensor], Tensor]


def tanh_cell(radius: float, batch: int = 8, width: int = 32, seed: int = 0) -> Function:
    """tanh(W z + x), where W has about this spectral radius."""
    drawn = torch.Generator().manual_seed(seed)
    w = torch.randn(width, width, generator=drawn, dtype=F64) * radius / math.sqrt(width)
    x = torch.randn(batch, width, generator=drawn, dtype=F64)
    return lambda z: torch.tanh(z @ w.T + x)


def affine(eigenvalues: Tensor, batch: int, seed: int = 0) -> tuple[Function, Tensor]:
    """z M + x with a symmetric M of these eigenvalues, and its fixed point."""
    drawn = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=drawn, dtype=F64))
    m = q @ torch.diag(eigenvalues) @ q.T
    x = torch.randn(batch, n, generator=drawn, dtype=F64)
    return lambda z: z @ m + x, torch.linalg.solve(torch.eye(n, dtype=F64) - m, x, left=False)


def run(solver: Any, f: Function, z: Tensor, tol: float = 1e-9, max_steps: int = 200) -> Any:
    return solver.run(lambda leaves: [f(leaves[0])], [z], tol, max_steps)


def zeros(batch: int = 8, width: int = 32) -> Tensor:
    return torch.zeros(batch, width, dtype=F64)


# ---- the update --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 6),
    size=st.integers(1, 8),
    count=st.integers(1, 12),
    rows=st.integers(1, 3),
    beta=st.sampled_from([1.0, 0.5, 2.0]),
    seed=st.integers(0, 999),
)
def test_the_update_is_broydens(
    n: int, size: int, count: int, rows: int, beta: float, seed: int
) -> None:
    """H <- H + (s - H y) s^T H / (s^T H y) by the last pairs in their order, from H = -beta on."""
    drawn = torch.Generator().manual_seed(seed)
    updates, pairs = _Updates(size, beta), []
    for _ in range(count):
        s, g = (torch.randn(rows, n, generator=drawn, dtype=F64) for _ in range(2))
        # g changes along s: s^T H y stays away from zero, which random pairs do not see to.
        y = -s / beta + 0.2 * torch.randn(rows, n, generator=drawn, dtype=F64) * s.norm() / n
        pairs.append((s, y))
        got = updates.direction(s, y, g)
        for row in range(rows):
            h = -beta * torch.eye(n, dtype=F64)
            for s_all, y_all in pairs[-size:]:
                s_row, y_row = s_all[row], y_all[row]
                hy, sh = h @ y_row, s_row @ h
                h = h + torch.outer(s_row - hy, sh) / (s_row @ hy)
            want = -h @ g[row]
            # Both solve small systems; 1e-7 leaves room for a condition of 1e8.
            torch.testing.assert_close(got[row], want, rtol=1e-7, atol=1e-7)


def test_a_row_that_stands_still_or_whose_system_is_singular_takes_a_plain_step() -> None:
    updates, g = _Updates(4, 0.5), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    s = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert torch.equal(updates.direction(s, torch.tensor([[0.0, 0.0], [0.0, 1.0]]), g), 0.5 * g)


def test_a_step_of_length_zero_leaves_what_was_learned() -> None:
    drawn = torch.Generator().manual_seed(0)
    s, g = (torch.randn(1, 4, generator=drawn, dtype=F64) for _ in range(2))
    once, twice = _Updates(4, 1.0), _Updates(4, 1.0)
    twice.direction(s, -0.5 * s, g)
    got = twice.direction(torch.zeros_like(s), torch.zeros_like(s), g)
    want = once.direction(s, -0.5 * s, g)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
    assert (want - g).abs().max() > 0.1


# ---- where it gets to --------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 8), batch=st.integers(1, 4), batched=st.booleans(), seed=st.integers(0, 999)
)
def test_a_linear_problem_ends_within_2n_steps(
    n: int, batch: int, batched: bool, seed: int
) -> None:
    """Gay, SIAM J. Numer. Anal. 16, 1979. Most of these f do not contract: eigenvalues to -3.

    n is the number of distinct eigenvalues, however many rows there are: the steps stay in the
    space that M spans from the first g.
    """
    f, limit = affine(torch.linspace(-3, 0.8, n, dtype=F64), batch, seed)
    dimension = n if batched or batch == 1 else n * batch
    solver = Broyden(memory=2 * dimension, batched=batched)
    found = run(solver, f, zeros(batch, n), tol=1e-8, max_steps=2 * dimension + 1)
    assert found.residual < 1e-8
    # The distance is the residual through (I - M)^-1, whose norm is 1 / 0.2.
    far = 5 * 1e-8 * (1e-5 + float(limit.norm()))
    assert float((found.z[0] - limit).norm()) <= 10 * far


def test_it_reaches_an_equilibrium_that_picard_does_not() -> None:
    f = tanh_cell(1.5)
    assert run(Picard(), f, zeros()).residual > 1e-3
    for memory, batched in ((8, True), (16, False), (16, True)):
        found = run(Broyden(memory=memory, batched=batched), f, zeros())
        assert found.residual < 1e-9
        assert found.residual == relative_residual(found.z, [f(found.z[0])])


def test_rows_are_solved_as_if_alone() -> None:
    """Also beside one that is lost: rows share no number but the residual."""
    f, z = tanh_cell(1.2, batch=3), zeros(3)

    def spoiled(z: Tensor) -> Tensor:
        out = f(z)
        return torch.cat([out[:2], torch.where(z[2:].abs().amax() > 0.1, math.inf, out[2:])])

    solver = Broyden(memory=6, batched=True)
    whole, beside = (run(solver, g, z, tol=0.0, max_steps=15).z[0] for g in (f, spoiled))
    for row in range(2):
        alone = run(solver, lambda t, i=row: f(t.expand(3, -1))[i : i + 1], z[:1], 0.0, 15).z[0]
        # 15 steps of roundings, in products whose order of summation may differ.
        torch.testing.assert_close(whole[row : row + 1], alone, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(beside[row : row + 1], alone, rtol=1e-9, atol=1e-9)
    assert beside.isfinite().all()


def test_the_best_state_is_returned() -> None:
    """Of a solve that ends early, whatever came after it, with the residual that it has."""
    f, seen = tanh_cell(3.0, seed=3), []

    def watched(z: Tensor) -> Tensor:
        value = f(z)
        seen.append(float((value - z).norm()))
        return value

    found = run(Broyden(), watched, zeros(), max_steps=40)
    assert len(seen) == found.steps == 40
    (z,) = found.z
    assert min(seen) == float((f(z) - z).norm()) < seen[-1]
    assert found.residual == relative_residual([z], [f(z)])


# ---- other implementations ---------------------------------------------------------------------


def test_scipy_takes_the_same_steps() -> None:
    """broyden1 without a line search, from the same first Jacobian."""
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    f = tanh_cell(1.5, batch=1)
    theirs: list[Tensor] = []

    def g(z: Any) -> Any:
        theirs.append(torch.from_numpy(z.copy()))
        row = torch.from_numpy(z)[None]
        return (f(row) - row)[0].numpy()

    with pytest.raises(optimize.NoConvergence):
        optimize.broyden1(g, zeros(1)[0].numpy(), alpha=1.0, maxiter=20, line_search=None)
    ours: list[Tensor] = []

    def watched(z: Tensor) -> Tensor:
        ours.append(z[0].clone())
        return f(z)

    run(Broyden(memory=50), watched, zeros(1), tol=0.0, max_steps=20)
    for got, want in zip(ours, theirs, strict=False):
        # Roundings grow with the steps; an update that is another one is off by a tenth at once.
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert len(ours) == 20 <= len(theirs)


PROBLEMS = {
    "contracts": tanh_cell(0.9),
    "contracts slowly": tanh_cell(1.2, seed=1),
    "does not contract": tanh_cell(1.5, seed=4),
    "linear": affine(torch.linspace(-0.5, 0.97, 32, dtype=F64), 8)[0],
    "linear, does not contract": affine(torch.linspace(-3, 0.9, 32, dtype=F64), 8)[0],
}


def torchdeq_steps(f: Function, tol: float, **options: Any) -> int:
    """Evaluations of f that torchdeq's broyden takes; 1000 where it does not get there in 200."""
    solver = pytest.importorskip("torchdeq.solver", reason="torchdeq is not installed")
    calls = 0

    def counted(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return f(z)

    options = {"max_iter": 200, "tol": tol, "stop_mode": "rel", **options}
    _, _, info = solver.broyden_solver(counted, zeros(), **options)
    return calls if float(info["rel_lowest"].max()) < tol else 1000


@pytest.mark.parametrize("name", PROBLEMS)
def test_torchdeq_takes_as_many_steps(name: str) -> None:
    """It stops where the worst row is below tol, this at all rows together: a few steps less."""
    f, tol = PROBLEMS[name], 1e-8
    ours = run(Broyden(memory=100, batched=True), f, zeros(), tol)
    assert ours.residual < tol
    assert ours.steps <= torchdeq_steps(f, tol) + 2
    limited = run(Broyden(memory=16, batched=True), f, zeros(), tol)
    assert limited.residual < tol
    assert limited.steps <= torchdeq_steps(f, tol, LBFGS_thres=16) + 2


def test_a_line_search_does_not_pay() -> None:
    """Why there is none: torchdeq's, on the same problems."""
    for f in PROBLEMS.values():
        assert torchdeq_steps(f, 1e-8, ls=True) >= torchdeq_steps(f, 1e-8)


# ---- where f overflows -------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_it_comes_back_from_states_where_f_is_not_finite(bad: float, batched: bool) -> None:
    """f has an edge that the first step crosses."""
    w = torch.tensor([-3.0, 0.5], dtype=F64)
    b = torch.tensor([4.0, 0.25], dtype=F64)
    lost = 0

    def f(z: Tensor) -> Tensor:
        nonlocal lost
        out = torch.where(z.abs() > 1.5, bad, w * z + b)
        lost += not bool(out.isfinite().all())
        return out

    found = run(Broyden(batched=batched), f, torch.zeros(2, 2, dtype=F64))
    assert lost and found.residual < 1e-9
    torch.testing.assert_close(found.z[0], (b / (1 - w)).expand(2, 2), rtol=1e-7, atol=0.0)


def test_a_step_that_overflows_is_taken_back_to_f_of_the_best_state() -> None:
    best = _Best([torch.zeros(2, 1)], torch.zeros(2, 1), torch.ones(2, 1))
    back = best.nearer(torch.tensor([[math.inf], [3.0]]))
    assert torch.equal(back, torch.tensor([[1.0], [1.5]]))


def test_a_start_where_f_is_not_finite_ends_at_once() -> None:
    with pytest.warns(UserWarning, match="got nan after 1 steps"):
        found = fixed_point(lambda z: z + math.inf, torch.zeros(3), solver=Broyden())
    assert not found.stats.converged


# ---- forms of the state ------------------------------------------------------------------------


def test_a_fixed_point_is_a_place_to_stay() -> None:
    """Steps of length zero teach nothing, and break nothing."""
    found = run(Broyden(), lambda z: torch.full_like(z, 0.5), zeros(), tol=0.0, max_steps=30)
    assert found.residual == 0.0 and torch.equal(found.z[0], torch.full_like(zeros(), 0.5))
    assert found.steps == 30


@pytest.mark.parametrize("batched", [False, True])
def test_leaves_of_several_shapes_and_dtypes(batched: bool) -> None:
    w = torch.tensor([[0.0, -1.5], [1.5, 0.0]])

    def f(z: dict[str, Tensor]) -> dict[str, Tensor]:
        half = torch.tanh(z["b"].float() @ w + 1).bfloat16()
        return {"a": 0.5 * z["b"].float().sum(-1) + 1, "b": half, "c": 0.5 * z["c"]}

    z0 = {"a": torch.zeros(3), "b": torch.zeros(3, 2).bfloat16(), "c": torch.zeros(3, 0)}
    found = fixed_point(f, z0, solver=Broyden(batched=batched), tol=5e-3)
    assert found.stats.converged
    assert {k: v.dtype for k, v in found.z.items()} == {k: v.dtype for k, v in z0.items()}
    assert {k: v.shape for k, v in found.z.items()} == {k: v.shape for k, v in z0.items()}


def test_the_residual_is_that_of_the_rounded_state() -> None:
    """A state in 16 bits is rounded after every step, and f reads it so."""
    f = tanh_cell(0.9, batch=2)
    start = zeros(2).bfloat16()

    def rounded(leaves: Sequence[Tensor]) -> list[Tensor]:
        return [f(leaves[0].double()).bfloat16()]

    found = Broyden().run(rounded, [start], 1e-6, 12)
    assert found.z[0].dtype == torch.bfloat16
    assert found.residual == relative_residual(found.z, rounded(found.z))


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0)])
def test_states_of_no_dimension_and_of_no_elements(shape: tuple[int, ...]) -> None:
    found = fixed_point(lambda z: 0.5 * z + 1, torch.zeros(shape), solver=Broyden())
    torch.testing.assert_close(found.z, torch.full(shape, 2.0))
    if shape:
        batched = fixed_point(lambda z: z + 0, torch.zeros(shape), solver=Broyden(batched=True))
        assert batched.z.shape == shape


@pytest.mark.parametrize("solver", [Broyden(), Broyden(batched=True), Anderson()], ids=str)
def test_f_may_write_its_result_where_the_last_one_was(solver: Any) -> None:
    """As compiled functions do whose results lie in a CUDA graph."""
    f, buffer = tanh_cell(1.2, batch=3), zeros(3)
    apart = run(solver, f, zeros(3), max_steps=25)
    shared = run(solver, lambda z: buffer.copy_(f(z)), zeros(3), max_steps=25)
    assert torch.equal(apart.z[0], shared.z[0]) and apart.residual == shared.residual


@pytest.mark.parametrize("options", [{"memory": 0}, {"memory": 2.5}, {"beta": 0.0}])
def test_options(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}: expected"):
        Broyden(**options)


# ---- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
def test_the_gradient_where_f_does_not_contract(batched: bool) -> None:
    """Forward and adjoint by Broyden; the gradient of sum(z) is (I - M)^-1 1, summed over rows."""
    m = torch.diag(torch.tensor([-2.5, 0.5, -1.2], dtype=F64)) + 0.1
    x = torch.ones(4, 3, dtype=F64, requires_grad=True)
    options: dict[str, Any] = {"solver": Broyden(batched=batched), "tol": 1e-11}
    found = fixed_point(lambda z, x: z @ m + x, zeros(4, 3), x, **options)
    found.z.sum().backward()
    want = torch.linalg.solve(torch.eye(3, dtype=F64) - m, torch.ones(3, dtype=F64))
    torch.testing.assert_close(x.grad, want.expand(4, 3), rtol=1e-9, atol=1e-9)
    assert found.stats.adjoint_steps is not None and found.stats.adjoint_steps > 2
