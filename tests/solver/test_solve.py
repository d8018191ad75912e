"""The contract of ``solve``: values, statistics, stopping, the range of its numbers."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels import exact_numbers
from tests.solver.cells import CELLS, cell_and_input
from tests.tolerances import grid_error, unit_roundoff
from torch_revdeq import RangeError, solve
from torch_revdeq.iteration.stopping import Stopping


def defined(
    f: Callable[..., Tensor], z0: Tensor, x: Tensor, beta: float, steps: int, bits: int
) -> tuple[Tensor, Tensor]:
    """The exact solve in whole numbers: each new state is the point of the grid that is nearest.

    What lies in the middle of two goes down and up by turns. f reads float32.
    """
    ratio = exact_numbers.contraction(beta)  # 1 - beta = sign 2^30 / q

    def new(state: Tensor, value: Tensor, up: int) -> Tensor:
        fixed = (value.double() * 2**bits).round().long()
        twice = 2 * 2**30 * ratio.sign * (state - fixed)  # 2 q (1 - beta) of the distance to f
        if up:
            moved = (twice + ratio.q).div(2 * ratio.q, rounding_mode="floor")
        else:
            moved = -(ratio.q - twice).div(2 * ratio.q, rounding_mode="floor")
        return fixed + moved

    def read(state: Tensor) -> Tensor:
        return (state.double() / 2**bits).float()

    y = z = (z0.double() * 2**bits).round().long()
    for n in range(steps):
        y = new(y, f(read(z) if n else z0, x), n % 2)
        z = new(z, f(read(y), x), (n + 1) % 2)
    return read(z), read(y)


@torch.no_grad()
@pytest.mark.parametrize("beta", [0.5, 0.8, 1.3])
@pytest.mark.parametrize("cell", CELLS)
def test_values_are_those_of_the_equations(cell: str, beta: float) -> None:
    f, x = cell_and_input(cell)
    z0 = torch.randn_like(x)
    solution = solve(f, z0, x, beta=beta, max_steps=5, frac_bits=18)
    z, y = defined(f, z0, x, beta, 5, 18)
    assert torch.equal(solution.z, z) and torch.equal(solution.y, y)


@torch.no_grad()
def test_float_values_are_those_of_the_equations() -> None:
    f, x = cell_and_input("block")
    y = z = z0 = torch.randn_like(x)
    for beta in (0.5, 0.7, 0.9):
        y = (1 - beta) * y + beta * f(z, x)
        z = (1 - beta) * z + beta * f(y, x)
    solution = solve(f, z0, x, beta=[0.5, 0.7, 0.9], max_steps=3, state=torch.float32)
    assert torch.equal(solution.z, z) and torch.equal(solution.y, y)


@pytest.mark.parametrize("state", ["exact", torch.float32, torch.float64], ids=str)
def test_the_same_bits_with_and_without_grad(state: object) -> None:
    f, x = cell_and_input("conv")
    solution = solve(f, torch.zeros_like(x), x, state=state)  # type: ignore[arg-type]
    with torch.no_grad():
        plain = solve(f, torch.zeros_like(x), x, state=state)  # type: ignore[arg-type]
    assert torch.equal(solution.z, plain.z) and torch.equal(solution.y, plain.y)
    assert solution.z.requires_grad and not plain.z.requires_grad
    if state == "exact":
        assert solution.stats.state_bytes > plain.stats.state_bytes == 8 * x.numel()
    for adjoint in ("backprop", "checkpoint", "hooks"):
        other = solve(f, torch.zeros_like(x), x, state=state, adjoint=adjoint)  # type: ignore[arg-type]
        assert torch.equal(solution.z, other.z) and torch.equal(solution.y, other.y)


def test_inference_mode() -> None:
    f, x = cell_and_input("mlp")
    with torch.inference_mode():
        z = solve(f, torch.zeros_like(x), x).z
    assert torch.equal(z, solve(f, torch.zeros_like(x), x).z)


def test_statistics() -> None:
    f, x = cell_and_input("mlp")
    stats = solve(f, torch.zeros_like(x), x, max_steps=16).stats
    assert (stats.steps, stats.nfe, stats.state, stats.adjoint) == (16, 32, "exact", "reversible")
    assert stats.frac_bits == 20
    assert stats.converged is None and stats.reconstruction_error is None
    digits = 32 * rk.digit_bytes(x.numel(), 0.5)
    assert stats.state_bytes == 8 * x.numel() + digits
    double = solve(f.double(), torch.zeros_like(x).double(), x.double())
    assert (double.stats.state, double.stats.frac_bits) == ("float64", None)
    assert double.z.dtype == torch.float64


def test_the_residual_is_the_relative_one_of_the_last_step() -> None:
    f, x = cell_and_input("mlp")
    with torch.no_grad():
        solution = solve(f, torch.zeros_like(x), x, max_steps=3, state=torch.float64)
        y, value = solution.y, f(solution.y, x)
        want = float((y - value).norm() / (1e-5 + value.norm()))
    # Read from z and y in float64, and here from y in float32: u of the norms, and f rounds 32
    # products in float32 in both.
    u = unit_roundoff(torch.float32)
    allowed = 2 * (1 + 32) * u * float(1 + y.norm() / value.norm())
    assert solution.stats.residual == pytest.approx(want, abs=allowed)


@pytest.mark.parametrize("tol", [None, 1e-9])
def test_statistics_are_pickled_with_their_residual(tol: float | None) -> None:
    """Without a tol nothing depends on the residual, and it is divided when it is asked for."""
    stats = solve(contraction, torch.zeros(9), torch.ones(9), max_steps=3, tol=tol).stats
    other = pickle.loads(pickle.dumps(stats))
    assert 0 < stats.residual < 1
    assert other.residual == stats.residual
    assert type(vars(other)["_residual"]) is Tensor  # the number, and not what it is divided from


# ---- stopping --------------------------------------------------------------------------------


def contraction(z: Tensor, x: Tensor) -> Tensor:
    return 0.5 * torch.tanh(z) + x


def test_tol_stops_at_the_first_step_below_it() -> None:
    x = torch.randn(64)
    residuals = [
        solve(contraction, torch.zeros(64), x, max_steps=n).stats.residual for n in range(1, 30)
    ]
    stats = solve(contraction, torch.zeros(64), x, max_steps=50, tol=1e-4).stats
    first = next(n for n, residual in enumerate(residuals, 1) if residual < 1e-4)
    assert stats.steps == first < 50
    assert stats.converged and stats.residual == residuals[first - 1]
    every = solve(contraction, torch.zeros(64), x, max_steps=50, tol=1e-4, check_every=4).stats
    assert every.steps == -(-first // 4) * 4
    assert not solve(contraction, torch.zeros(64), x, max_steps=3, tol=1e-4).stats.converged
    assert solve(contraction, torch.zeros(64), x, max_steps=30, tol=0.0).stats.steps == 30


def test_a_solve_that_stops_is_differentiated_at_that_step() -> None:
    x = torch.randn(64, requires_grad=True)
    stopped = solve(contraction, torch.zeros(64), x, max_steps=50, tol=1e-5, beta=0.7)
    fixed = solve(contraction, torch.zeros(64), x, max_steps=stopped.stats.steps, beta=0.7)
    grads = [torch.autograd.grad(s.z.sum(), x)[0] for s in (stopped, fixed)]
    assert torch.equal(*grads)
    assert stopped.stats.steps > 8  # more than one chunk of digits
    assert stopped.stats.reconstruction_error == 0.0


def test_tol_looks_at_the_worst_leaf() -> None:
    """One leaf is there at once, the other is not."""

    def f(z: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        return z[0], contraction(z[1], x)

    x = torch.randn(64)
    alone = solve(contraction, torch.zeros(64), x, max_steps=50, tol=1e-4).stats.steps
    assert (
        solve(f, (torch.ones(64), torch.zeros(64)), x, max_steps=50, tol=1e-4).stats.steps == alone
    )


def test_on_another_device_the_decision_lags_by_one_check(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(64)
    now = solve(contraction, torch.zeros(64), x, max_steps=50, tol=1e-4).stats.steps
    begin = Stopping.__init__

    def lagging(self: Stopping, *args: object) -> None:
        begin(self, *args)  # type: ignore[arg-type]
        self.lag = 1

    monkeypatch.setattr(Stopping, "__init__", lagging)
    assert solve(contraction, torch.zeros(64), x, max_steps=50, tol=1e-4).stats.steps == now + 1


# ---- fractional bits and the range -----------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "dtype", "bits"),
    [
        (1.0, torch.float32, 20),
        (1.0, torch.bfloat16, 16),
        (100.0, torch.float32, 18),
        (1e4, torch.float32, 11),
        (1e6, torch.bfloat16, 5),
    ],
)
def test_fractional_bits_by_the_rule(scale: float, dtype: torch.dtype, bits: int) -> None:
    """floor(30 - log2(32 max(1, largest))), at most 20 for float32 and 16 for less."""
    z0 = torch.tensor([scale, -scale / 2]).to(dtype)
    assert solve(lambda z: z * 0.5, z0).stats.frac_bits == bits
    seen_in_f = solve(lambda z: z * 0 + scale, torch.zeros(2, dtype=dtype)).stats.frac_bits
    assert seen_in_f == bits
    assert solve(lambda z: z * 0.5, z0, frac_bits=3).stats.frac_bits == 3


def test_leaving_the_range_names_the_remedy() -> None:
    z0 = torch.ones(4, requires_grad=True)
    with pytest.raises(RangeError, match=r"below 1024.*frac_bits=20.*smaller frac_bits.*float32"):
        solve(lambda z: z * 40.0, z0, max_steps=30, frac_bits=20)
    with torch.no_grad(), pytest.raises(RangeError):
        solve(lambda z: z * 40.0, z0, max_steps=30, frac_bits=20)
    with pytest.raises(RangeError, match="Inf or NaN"):
        solve(lambda z: z / 0.0, z0, frac_bits=20)
    with pytest.raises(RuntimeError, match="finite"):
        solve(lambda z: z / 0.0, z0)
    with pytest.raises(RuntimeError, match=r"2\*\*25.*state=torch.float32"):
        solve(lambda z: z, z0 * 1e9)


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()], ids=str)
def test_empty_and_scalar_states(shape: tuple[int, ...]) -> None:
    z0 = torch.zeros(shape, requires_grad=True)
    solution = solve(lambda z: 0.5 * z + 1.0, z0, max_steps=30)
    assert solution.z.shape == shape
    # Every step takes the larger distance of y and z from 2 to 3/4 of it or less, and adds the
    # roundings of the two half steps to the grid, which therefore add up to four times these.
    allowed = 2 * 0.75**30 + 4 * 2 * grid_error(20)
    assert ((solution.z - 2.0).abs() <= allowed).all()
    solution.z.sum().backward()
    assert z0.grad is not None and z0.grad.shape == shape


def test_the_exact_state_is_the_default_up_to_float32() -> None:
    for dtype, state in (
        (torch.float32, "exact"),
        (torch.bfloat16, "exact"),
        (torch.float64, "float64"),
    ):
        assert solve(lambda z: 0.5 * z, torch.zeros(3, 4, dtype=dtype)).stats.state == state
