"""``per_sample``: every sample halts by itself, at the steps and with the values of a loop."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.solver.iteration.samples import (
    ADJOINTS,
    CONTRACTIONS,
    SAMPLES,
    TOL,
    explained,
    looped,
    problem,
    spread,
)
from tests.tolerances import assert_within, gradient_bound, grid_error, limit_error, unit_roundoff
from torch_revdeq import RangeError, ReconstructionError, RevDEQ, solve
from torch_revdeq.iteration.residual import sample_residuals

# ---- values, steps and gradients by the definition -------------------------------------------


@pytest.mark.parametrize("adjoint", [*ADJOINTS, "backprop"])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("beta", [0.6, 1.2])
@pytest.mark.parametrize("name", CONTRACTIONS)
def test_all_is_that_of_a_loop_over_the_samples(
    name: str, beta: float, every: int, adjoint: Any
) -> None:
    (f, z0, x, rate), dims = problem(name, torch.float64), CONTRACTIONS[name][2]
    z0.requires_grad_()
    options: dict[str, Any] = {"tol": TOL, "check_every": every, "max_steps": 9}
    got = solve(f, z0, x, rate, beta=beta, per_sample=dims, adjoint=adjoint, **options)
    towards = list(torch.randn(2, *z0.shape, dtype=z0.dtype))
    wrt = [z0, x, rate, *f.parameters()]
    # Before the loop, which writes the statistics of BatchNorm.
    grads = torch.autograd.grad([got.z, got.y], wrt, towards)
    z, y, taken, residuals = looped(lambda z: f(z, x, rate), z0, beta, 9, every, dims)
    assert spread(got.stats) == taken
    assert got.stats.sample_steps is not None
    assert got.stats.sample_steps.shape == z0.shape[:dims]
    forward = gradient_bound(torch.float64, 0.0, 9, curvature=0.0, terms=32)  # of sums alone
    assert got.stats.residual == pytest.approx(max(residuals), abs=forward)
    assert got.stats.converged == (max(residuals) < TOL)
    wanted = torch.autograd.grad([z, y], wrt, towards)
    assert_within((got.z, got.y), (z, y), forward)
    assert_within(grads, wanted, explained(9, got.stats))


def test_a_sample_alone_takes_the_same_steps_to_the_same_z() -> None:
    f, z0, x, rate = problem(dtype=torch.float64)
    options: dict[str, Any] = {"beta": 0.7, "tol": TOL, "max_steps": 40}
    together = solve(f, z0, x, rate, per_sample=True, **options)
    taken = spread(together.stats)
    assert together.stats.converged
    for i in range(SAMPLES):
        one = slice(i, i + 1)
        alone = solve(f, z0[one], x[one], rate[one], **options)
        assert alone.stats.steps == taken[i]
        forward = gradient_bound(torch.float64, 0.0, taken[i], curvature=0.0, terms=32)
        assert_within([together.z[one]], [alone.z], forward)
        (grad,) = torch.autograd.grad(alone.z.sum(), x)
        (part,) = torch.autograd.grad(together.z[one].sum(), x, retain_graph=True)
        assert_within([part], [grad], explained(taken[i], alone.stats, together.stats))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("shape", [(5, 300), (3, 17, 40), (3, 5, 70), (7,)], ids=str)
def test_residuals_have_the_same_bits_whatever_the_strides(
    shape: tuple[int, ...], dims: int
) -> None:
    torch.manual_seed(0)
    z, f = torch.randn(2, *shape)
    turned = [
        t.movedim(-1, 0).contiguous().movedim(0, -1)
        if t.dim() > 1
        else t[:, None].repeat(1, 2)[:, 0]
        for t in (z, f)
    ]
    dims = min(dims, len(shape))
    got = sample_residuals([z], [f], dims)
    assert got.shape == shape[:dims]
    assert torch.equal(got, sample_residuals(turned[:1], turned[1:], dims))
    flat = [t.flatten(0, dims - 1) for t in (z, f)]
    assert torch.equal(got.flatten(), sample_residuals(flat[:1], flat[1:]))
    rows = zip(*(t.double() for t in flat), strict=True)
    want = torch.stack([(a - b).norm() / (1e-5 + b.norm()) for a, b in rows]).view(shape[:dims])
    # Sums in float64, of which a float32 comes back: their own roundings are far below that one's.
    assert_within([got.double()], [want], 1.01 * unit_roundoff(torch.float32))


def test_a_sample_that_has_halted_stays_as_it_is() -> None:
    """Bit for bit, also where f goes on to mix it with others."""
    f, z0, x, rate = problem("mixing")
    options: dict[str, Any] = {"tol": TOL, "per_sample": True, "frac_bits": 20}
    end = solve(f, z0, x, rate, max_steps=12, **options)
    for i, taken in enumerate(spread(end.stats)):
        then = solve(f, z0, x, rate, max_steps=taken, **options)
        assert torch.equal(end.z[i], then.z[i]) and torch.equal(end.y[i], then.y[i])


# ---- numbers that are none -------------------------------------------------------------------


def test_nan_halts_nothing() -> None:
    def f(z: Tensor) -> Tensor:
        return 0.5 * z + torch.tensor([[1.0], [float("nan")], [2.0]])

    options: dict[str, Any] = {"tol": 1e-3, "max_steps": 25, "state": torch.float32}
    solution = solve(f, torch.zeros(3, 2), per_sample=True, **options)
    taken = solution.stats.sample_steps
    assert taken is not None and taken[1] == 25 == solution.stats.steps
    assert taken[0] == taken[2] < 25
    assert solution.z[::2].isfinite().all() and solution.z[1].isnan().all()
    assert not solution.stats.converged


@pytest.mark.parametrize("adjoint", [*ADJOINTS, "backprop"])
@pytest.mark.parametrize("state", ["exact", torch.float32], ids=str)
@pytest.mark.parametrize("worst", [1e9, float("inf"), float("nan")])
def test_what_f_makes_of_a_sample_that_has_halted_is_not_used(
    worst: float, state: Any, adjoint: Any
) -> None:
    """It may leave the range, or be no number: neither the state nor a gradient sees it."""
    x = torch.tensor([[0.0], [0.3]])
    seen: list[bool] = []
    stats: list[Any] = []

    def f(z: Tensor, w: Tensor) -> Tensor:
        pit = ((z - 0.4).abs() < 0.01) & (x == 0.0)  # where the z of the first sample halts
        seen.append(bool(pit.any()))
        return torch.where(pit, worst, w * z * (z - 1.0) + x)

    def observed(adjoint: Any) -> tuple[Tensor, ...]:
        w = torch.tensor(0.5, requires_grad=True)
        learned = adjoint != "hooks" or state == "exact"
        beta = torch.tensor(0.6, requires_grad=learned)
        z0, y0 = torch.tensor([[1.0], [0.5]]), torch.tensor([[0.0], [0.5]])
        options: dict[str, Any] = {"tol": 1e-6, "max_steps": 9, "per_sample": True, "state": state}
        bits = 20 if state == "exact" else "auto"
        solution = solve(f, z0, w, y0=y0, beta=beta, adjoint=adjoint, frac_bits=bits, **options)
        assert spread(solution.stats) == [1, 9]
        stats.append(solution.stats)
        wrt = [w, beta] if learned else [w]
        return solution.z.detach(), *torch.autograd.grad(solution.z.sum(), wrt)

    got = observed(adjoint)
    assert any(seen) and all(t.isfinite().all() for t in got)
    # f and the new state are rounded to the grid, half a step each.
    assert got[0][0] == pytest.approx(0.4, abs=2 * grid_error(20)) and got[1] != 0
    want = observed("backprop")[: len(got)]  # where "hooks" learn no beta, without its gradient
    if state == "exact":
        assert all(map(torch.equal, got, want))
    else:
        # f'' = 2 w = 1, and states are of the size of 1: they came back to within that much.
        back = stats[0].reconstruction_error or 0.0
        bound = gradient_bound(torch.float32, back, 9, curvature=1.0, terms=3)
        assert_within(got, want, bound)


def test_a_sample_that_moves_out_of_the_range_raises() -> None:
    def f(z: Tensor) -> Tensor:
        return z * torch.tensor([[1.0], [40.0]])

    with pytest.raises(RangeError):
        solve(f, torch.ones(2, 1), max_steps=9, tol=1e-3, per_sample=True, frac_bits=20)


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
def test_a_wrong_way_back_is_noticed(adjoint: Any) -> None:
    f, z0, x, rate = problem()
    z = solve(f, z0, x, rate, tol=TOL, per_sample=True, adjoint=adjoint).z
    next(f.parameters()).data.add_(0.1)
    with pytest.raises(ReconstructionError):
        z.sum().backward()


# ---- statistics, shapes, refusals ------------------------------------------------------------


def test_statistics() -> None:
    f, z0, x, rate = problem()
    options: dict[str, Any] = {"tol": TOL, "beta": 0.9, "max_steps": 20}
    stats = solve(f, z0, x, rate, per_sample=True, **options).stats
    taken = stats.sample_steps
    assert taken is not None and taken.dtype == torch.int64 and taken.shape == (SAMPLES,)
    assert stats.converged and 0 < stats.residual < TOL
    for other in (copy.copy(stats), copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
        assert other.sample_steps is not None and torch.equal(other.sample_steps, taken)
        assert other.residual == stats.residual
    few = solve(f, z0, x, rate, per_sample=True, **{**options, "max_steps": 3}).stats
    assert not few.converged and few.residual > TOL and max(spread(few)) == 3
    assert solve(f, z0, x, rate, **options).stats.sample_steps is None
    for without_grad in (torch.no_grad, torch.inference_mode):
        with without_grad():
            assert spread(solve(f, z0, x, rate, per_sample=True, **options).stats) == spread(stats)
    none = solve(f, z0, x, rate, per_sample=True, **{**options, "tol": 0.0}).stats
    assert none.sample_steps is not None and none.sample_steps.tolist() == [20] * SAMPLES


def test_where_none_halts_the_bits_are_those_without() -> None:
    f, z0, x, rate = problem()
    for state in ("exact", torch.float32):
        results = []
        extra: dict[str, Any]
        for extra in ({}, {"tol": 1e-12, "per_sample": True}):
            z = solve(f, z0, x, rate, max_steps=5, state=state, **extra).z
            results.append((z, *torch.autograd.grad(z.square().sum(), [x, *f.parameters()])))
        assert all(map(torch.equal, *results))


ONE = [(True, shape) for shape in [(0,), (0, 3), (3, 0), (4,), (2, 3, 2)]]
TWO = [(2, shape) for shape in [(0, 3, 2), (3, 0, 2), (3, 2, 0), (3, 2)]]


@pytest.mark.parametrize(("dims", "shape"), [*ONE, *TWO])
def test_any_shape_of_a_sample(dims: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    z0 = torch.randn(shape, requires_grad=True)
    solution = solve(lambda z: 0.5 * z + 1.0, z0, max_steps=30, tol=1e-3, per_sample=dims)
    assert solution.stats.sample_steps is not None and solution.stats.converged
    assert solution.stats.sample_steps.shape == shape[:dims]
    # z is never farther from the limit than y, whose residual was judged.
    norm = 2 * max(1, math.prod(shape[dims:])) ** 0.5
    assert ((solution.z - 2).abs() <= limit_error(1e-3, norm, 0.5) + 4 * grid_error(20)).all()
    solution.z.sum().backward()
    assert z0.grad is not None and z0.grad.shape == shape


def test_a_layer() -> None:
    f, z0, x, rate = problem()
    layer = RevDEQ(f, tol=TOL, max_steps=20, beta=0.9, per_sample=True)
    layer(x, rate, z0=z0).sum().backward()
    assert layer.stats is not None and layer.stats.reconstruction_error == 0.0
    spread(layer.stats)
    assert "per_sample=True" in repr(layer)


def test_a_transform_is_refused() -> None:
    def loss(z0: Tensor) -> Tensor:
        options: dict[str, Any] = {"tol": 1e-3, "per_sample": True, "adjoint": "backprop"}
        return solve(lambda z: 0.5 * z, z0, state=torch.float32, **options).z.sum()

    with pytest.raises(RuntimeError, match="tol: expected None inside a transform"):
        torch.func.grad(loss)(torch.ones(3))
