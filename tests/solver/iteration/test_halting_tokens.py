"""``per_sample=d``: every index of the first d dimensions halts by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.solver.iteration.samples import ADJOINTS, TOL
from tests.tolerances import assert_within, beside_bound, gradient_bound, round_trip_error
from torch_revdeq import LinearCell, RevDEQ, solve
from torch_revdeq.iteration.stopping import sample_residuals
from torch_revdeq.testing import assert_exact_gradients

F32, F64 = torch.float32, torch.float64
BATCH, LENGTH, D = 2, 3, 4


class Tokens(nn.Module):
    """Contracts every token by a factor of its own, `rate`; with `mix` also reads the others."""

    def __init__(self, mix: float = 0.0) -> None:
        super().__init__()
        self.w, self.mix = nn.Linear(D, D), mix
        with torch.no_grad():
            self.w.weight.copy_(torch.linalg.qr(self.w.weight)[0])

    def forward(self, z: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        out = torch.tanh(rate * self.w(z) + x)
        return out - self.mix * out.mean((0, 1)) if self.mix else out


def problem(mix: float = 0.0, dtype: torch.dtype = F32) -> tuple[Tokens, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    f = Tokens(mix).to(dtype)
    x = torch.randn(BATCH, LENGTH, D, dtype=dtype, requires_grad=True)
    rate = torch.tensor([[0.05, 0.1, 0.2], [0.5, 0.65, 0.8]], dtype=dtype).unsqueeze(-1)
    return f, torch.randn(BATCH, LENGTH, D, dtype=dtype), x, rate.requires_grad_()


def looped(
    f: Callable[[Tensor], Tensor], z0: Tensor, beta: float, steps: int, dims: int
) -> tuple[Tensor, Tensor, Tensor]:
    """z, y and the steps of every sample, by the definition."""
    y = z = z0
    taken = torch.zeros(z0.shape[:dims], dtype=torch.int64)
    moving = torch.ones_like(taken, dtype=torch.bool)
    rest = tuple(range(dims, z0.dim()))
    for _ in range(steps):
        wide = moving.view(*moving.shape, *(1,) * len(rest))
        y = torch.where(wide, (1 - beta) * y + beta * f(z), y)
        value = f(y)
        z = torch.where(wide, (1 - beta) * z + beta * value, z)
        taken += moving
        with torch.no_grad():
            norms = [t.square().sum(rest).sqrt() if rest else t.abs() for t in (y - value, value)]
            moving = moving & ~(norms[0] / (1e-5 + norms[1]) < TOL)
        if not moving.any():
            break
    return z, y, taken


def spread(stats: Any, dims: int = 2) -> Tensor:
    """The steps by sample: not all alike, or a test of halting says nothing."""
    taken = stats.sample_steps
    assert taken.shape == (BATCH, LENGTH, D)[:dims] and taken.dtype == torch.int64
    assert taken.unique().numel() > 1 and int(taken.max()) == stats.steps
    return taken


# ---- values and steps ----------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", [*ADJOINTS, "backprop"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("mix", [0.0, 0.2])
def test_all_is_that_of_the_definition(mix: float, dims: int, adjoint: Any) -> None:
    f, z0, x, rate = problem(mix, F64)
    options: dict[str, Any] = {"tol": TOL, "max_steps": 9, "beta": 0.6, "adjoint": adjoint}
    got = solve(f, z0, x, rate, per_sample=dims, **options)
    z, y, taken = looped(lambda z: f(z, x, rate), z0, 0.6, 9, dims)
    assert torch.equal(spread(got.stats, dims), taken)
    bound = gradient_bound(F64, 0.0, 9, curvature=0.0, terms=32)  # of sums alone
    assert_within((got.z, got.y), (z, y), bound)
    wrt = [x, rate, *f.parameters()]
    grads, wanted = (torch.autograd.grad(end.square().sum(), wrt) for end in (got.z, z))
    # A float64 state came back to within 1e-3 of an ulp's share of what gradients are held to here.
    assert_within(grads, wanted, 1e-9)


@pytest.mark.parametrize("adjoint", [*ADJOINTS, "backprop"])
def test_tokens_are_what_a_batch_of_them_is(adjoint: Any) -> None:
    """Bit for bit, where f takes every token for itself."""
    f, z0, x, rate = problem()
    options: dict[str, Any] = {"tol": TOL, "max_steps": 12, "adjoint": adjoint, "frac_bits": 20}

    def run(z0: Tensor, per_sample: Any, shape: tuple[int, ...]) -> list[Tensor]:
        parts = [t.view(*shape, t.shape[-1]) for t in (z0, x, rate)]
        end = solve(f, *parts, per_sample=per_sample, **options)
        assert end.stats.sample_steps is not None and end.stats.sample_steps.shape == shape
        grads = torch.autograd.grad(end.z.square().sum() + end.y.sum(), [x, rate, *f.parameters()])
        return [end.z.flatten(), end.y.flatten(), end.stats.sample_steps.flatten(), *grads]

    rows, tokens = run(z0, True, (6,)), run(z0, 2, (2, 3))
    assert all(map(torch.equal, rows, tokens))
    assert all(map(torch.equal, rows, run(z0, 3, (1, 2, 3))))


def test_true_is_one() -> None:
    f, z0, x, rate = problem(0.2)
    ends = [solve(f, z0, x, rate, tol=TOL, max_steps=12, per_sample=d) for d in (True, 1)]
    assert torch.equal(ends[0].z, ends[1].z)
    assert torch.equal(spread(ends[0].stats, 1), spread(ends[1].stats, 1))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_residuals_do_not_depend_on_strides(dims: int) -> None:
    torch.manual_seed(0)
    z, f = torch.randn(2, 3, 5, 70)
    turned = [t.permute(2, 0, 1).contiguous().permute(1, 2, 0) for t in (z, f)]
    got = sample_residuals([z], [f], dims)
    assert got.shape == z.shape[:dims]
    assert torch.equal(got, sample_residuals(turned[:1], turned[1:], dims))
    one = sample_residuals([z.flatten(0, dims - 1)], [f.flatten(0, dims - 1)])
    assert torch.equal(got.flatten(), one)


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("beta", [0.5, 0.9, [0.5, 0.8, 0.6, 1.1] * 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_exact_gradients_have_the_bits_of_stored_activations(
    dims: int, beta: Any, adjoint: str
) -> None:
    f, z0, x, rate = problem(0.2)
    z0.requires_grad_()
    for every, start in ((1, None), (2, torch.randn_like(z0).requires_grad_())):
        options: dict[str, Any] = {"beta": beta, "max_steps": 12, "tol": TOL, "y0": start}
        options |= {"check_every": every, "per_sample": dims, "adjoint": adjoint}
        stats = assert_exact_gradients(f, z0, x, rate, **options)
        spread(stats, dims)
        assert stats.reconstruction_error == (None if adjoint == "checkpoint" else 0.0)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("state", [F64, F32], ids=str)
def test_float_states(state: torch.dtype, adjoint: str) -> None:
    f, z0, x, rate = problem(0.2)
    assert z0.abs().max() < 3  # and f's values are below 1.2
    rtol = beside_bound(6, curvature=2.0, terms=32, magnitude=3.0)
    if state == F32:
        back = round_trip_error(F32, 0.4, 12, 3.0)
        rtol = gradient_bound(F32, back, 6, curvature=2.0, terms=32)
        assert rtol < 0.05
    options: dict[str, Any] = {"tol": 0.1, "max_steps": 6, "beta": 0.4, "per_sample": 2}
    stats = assert_exact_gradients(
        f, z0, x, rate, rtol=rtol, state=state, adjoint=adjoint, **options
    )
    spread(stats)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_beta_that_learns_and_kept_graphs_and_trees(adjoint: Any) -> None:
    f, z0, x, rate = problem(0.2)

    def pair(z: dict[str, Tensor], x: Tensor, rate: Tensor) -> dict[str, Tensor]:
        out = f(z["a"], x, rate)
        return {"a": out, "b": 0.5 * z["b"] + 0.1 * out.sum(-1)}

    start = {"a": z0, "b": torch.zeros(BATCH, LENGTH)}
    seen = []
    for how in (adjoint, "backprop"):
        beta = torch.tensor(0.7, requires_grad=True)
        options: dict[str, Any] = {"tol": TOL, "max_steps": 12, "per_sample": 2, "adjoint": how}
        if how == "reversible":
            options["store_last"] = 5
        end = solve(pair, start, x, rate, beta=beta, **options)
        spread(end.stats)
        loss = end.z["a"].square().sum() + end.y["b"].sum()
        seen.append(torch.autograd.grad(loss, [beta, x, rate, *f.parameters()]))
    assert all(map(torch.equal, *seen))


# ---- the cell in one op --------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["exact", F32], ids=str)
def test_one_op_halts_rows_of_any_number_of_dimensions(state: Any) -> None:
    name = "composite"
    torch.manual_seed(0)
    cell, x = LinearCell(32, 32), torch.randn(2, 3, 32)
    x = x * torch.logspace(-1, 1, 6).view(2, 3, 1)
    seen = []
    for form, dims in (((2, 3), 2), ((6,), True), ((1, 2, 3), 3)):
        layer = RevDEQ(
            cell, tol=TOL, max_steps=20, state=state, per_sample=dims, implementation=name
        )
        y0 = layer(x.view(*form, 32))
        stats = layer.stats
        assert stats is not None and stats.route.startswith(name)
        assert stats.sample_steps is not None and stats.sample_steps.shape == form
        assert stats.sample_steps.unique().numel() > 1
        seen.append([y0.flatten(), stats.sample_steps.flatten()])
    for other in seen[1:]:
        assert all(map(torch.equal, seen[0], other))
    layer = RevDEQ(cell, tol=TOL, per_sample=True, implementation=name)
    with pytest.raises(
        ValueError, match=r"got z0 with 3 dimensions .*per_sample=2 halts every row"
    ):
        layer(x)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "z0", "message"),
    [
        (True, torch.zeros(()), r"got shapes \(\); put"),
        (True, [torch.zeros(3, 2), torch.zeros(2, 3)], r"got shapes \(3, 2\), \(2, 3\)"),
        (True, [torch.zeros(3, 2), torch.zeros(())], "batch first"),
        (
            2,
            torch.zeros(3),
            r"in each of the first 2 dimensions, .* got shapes \(3,\); put",
        ),
        (2, [torch.zeros(3, 2), torch.zeros(3, 4)], r"got shapes \(3, 2\), \(3, 4\)"),
        (2, [torch.zeros(3, 2, 5), torch.zeros(3)], r"got shapes \(3, 2, 5\), \(3,\)"),
    ],
)
def test_errors(dims: Any, z0: Any, message: str) -> None:
    for grad in (True, False):
        with (
            torch.set_grad_enabled(grad),
            pytest.raises(ValueError, match=f"per_sample: expected leaves .*{message}"),
        ):
            solve(lambda z: z, z0, tol=TOL, per_sample=dims)


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2), (3, 2, 0), (3, 2)], ids=str)
def test_any_shape(shape: tuple[int, ...]) -> None:
    z0 = torch.randn(shape, requires_grad=True)
    solution = solve(lambda z: 0.5 * z + 1.0, z0, max_steps=30, tol=1e-3, per_sample=2)
    assert solution.stats.sample_steps is not None and solution.stats.converged
    assert solution.stats.sample_steps.shape == shape[:2]
    solution.z.sum().backward()
    assert z0.grad is not None and z0.grad.shape == shape
