"""``LinearCell`` under RevDEQ: by the solver, or by one op for all steps."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.utils.checkpoint import checkpoint

import revdeq_kernels as rk
from revdeq_kernels.ops.cell import checks as cell_checks
from revdeq_kernels.ops.cell import choice as cell_choice
from tests.conftest import BACKENDS
from tests.solver.cell.linear_layers import (
    BF16,
    F32,
    ONE_OP,
    cell,
    gradients,
    inputs,
    layer,
    one_op,
)
from torch_revdeq import LinearCell, RangeError, ReconstructionError, solve

# ---- the routes ------------------------------------------------------------------------------


def test_the_solver_runs_where_no_kernel_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_choice, "fastest", lambda w, act: None)
    model, f = layer(None), cell()
    x = inputs()
    out = model(x)
    assert torch.equal(out, solve(f, torch.zeros(6, 16), x).z)
    assert model.stats is not None
    assert model.stats.route.startswith("solver: no kernel for all steps is known to be faster")
    assert "16 features in torch.float32 on cpu" in model.stats.route


def test_what_was_measured_runs_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_choice, "fastest", lambda w, act: "composite")
    model = layer(None)
    model(inputs())
    assert model.stats is not None and model.stats.route == "composite: it is the fastest here"
    model = layer(None, tol=1e-3)
    model(inputs())
    assert model.stats is not None
    assert model.stats.route.startswith("solver: it takes tol with per_sample=True, or neither")


triton = pytest.mark.skipif("triton" not in BACKENDS, reason="Triton's interpreter is off")
cpu = pytest.mark.skipif("cpu" not in ONE_OP, reason="the extension is not built")

NAMED = [
    pytest.param("triton", "it was named", marks=triton),
    pytest.param("triton", "the backend was named", marks=triton),
    pytest.param("cpu", "it was named", marks=cpu),
    pytest.param("cpu", "it is the fastest here", marks=cpu),
]


@pytest.mark.parametrize(("name", "why"), NAMED)
def test_one_call_gives_what_the_solver_gives(
    name: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They differ in the order of their sums."""
    torch.manual_seed(0)
    f, x = LinearCell(12, 32), inputs(40)
    want = gradients(layer("solver", f, max_steps=2), x)
    monkeypatch.setattr(cell_choice, "_cached_instruction_set", lambda: "AVX2")
    model = layer(name if why == "it was named" else None, f, max_steps=2)
    with rk.backend("triton") if why == "the backend was named" else nullcontext():
        got = gradients(model, x)
    assert model.stats is not None and model.stats.reconstruction_error == 0.0
    assert model.stats.route == f"{name}: {why}"
    # 4 half steps of sums of 32 products, over 40 rows; f contracts.
    for key, expected in want.items():
        assert (got[key] - expected).abs().max() <= 4 * 32 * 40 * 2.0**-24 * expected.abs().max()


@triton
def test_a_cell_that_the_kernel_does_not_take() -> None:
    with pytest.raises(ValueError, match=r"'triton' cannot take this solve: it takes features of"):
        layer("triton", cell())(inputs())
    model = layer(None, cell())
    with rk.backend("triton"):
        model(inputs())
    assert model.stats is not None
    assert model.stats.route.startswith("solver: it takes features of 32, 64, 128 in torch.bfloat")


@pytest.mark.parametrize("act", cell_checks.ACTS)
@pytest.mark.parametrize("beta", [0.5, 0.8, 1.2])
def test_one_op_has_the_bits_of_the_solver(act: str, beta: float) -> None:
    """In float32 both round alike, but the one sums the gradient of U x + b before it meets x."""
    results = []
    for implementation in ("solver", "composite"):
        model = layer(implementation, cell(act), beta=beta, max_steps=5)
        results.append(gradients(model, inputs()))
        stats = model.stats
        assert stats is not None and stats.route == f"{implementation}: it was named"
        assert (stats.steps, stats.nfe, stats.state) == (5, 10, "exact")
        assert stats.frac_bits == 20 and stats.reconstruction_error == 0.0
    want, got = results
    assert torch.equal(want.pop("out"), got.pop("out")) and torch.equal(want["f.W"], got["f.W"])
    for name, expected in want.items():
        # 2 * 5 half steps, 6 rows, 16 features: so many roundings at the most.
        bound = 2 * 5 * 6 * 16 * 2.0**-24 * expected.abs().max()
        assert (got[name] - expected).abs().max() <= bound, name


@one_op
@pytest.mark.parametrize("act", cell_checks.ACTS)
def test_fractional_bits_are_those_that_the_solver_chooses(act: str, implementation: str) -> None:
    """Also where a bound on f is not enough, and where f is so large that there are fewer."""
    chosen = []
    for scale in (0.1, 3.0, 30.0, 3e3):
        found = []
        for name in ("solver", implementation):
            model = layer(name, cell(act), max_steps=1)
            model(scale * inputs(), z0=torch.full((6, 16), 0.25))
            assert model.stats is not None
            found.append(model.stats.frac_bits)
        assert found[0] == found[1], scale
        chosen.append(found[0])
    assert chosen[0] == 20 and (chosen[-1] < 20) == (act != "tanh")


@one_op
@pytest.mark.parametrize("place", ["x", "W", "z0"])
def test_numbers_that_are_not_finite_are_named_before_the_solve(
    place: str, implementation: str
) -> None:
    f, x, z0 = cell("relu"), inputs(), torch.zeros(6, 16)
    with torch.no_grad():
        {"x": x, "W": f.W, "z0": z0}[place][3, 2] = float("nan")
    for name in ("solver", implementation):
        with pytest.raises(
            RuntimeError, match=r"expected finite numbers in z0, y0 and f\(z0\), got"
        ):
            layer(name, f)(x, z0=z0)


@one_op
def test_sixteen_bits(implementation: str) -> None:
    """One op computes f in float32, the solver in bfloat16: they differ by f's roundings."""
    results = []
    for name in ("solver", implementation):
        f = cell(dtype=BF16)
        model = layer(name, f, max_steps=6)
        results.append(gradients(model, inputs(dtype=BF16)))
        assert {t.dtype for t in results[-1].values()} == {BF16}
    unit = 2.0**-8  # the product, its sum with u, and act: a rounding each, of numbers below 2
    # f contracts to 0.7 of a distance, so that they add up to less than 1 / (1 - 0.7) times.
    assert (results[0]["out"] - results[1]["out"]).abs().max() < 3 * 2 * unit / 0.3


@one_op
def test_a_start_in_float32_for_parameters_of_16_bits(implementation: str) -> None:
    model = layer(implementation, cell(dtype=BF16))
    out = model(inputs(dtype=BF16), z0=torch.zeros(6, 16))
    assert out.dtype == F32


@one_op
@pytest.mark.parametrize("state", ["exact", F32])
def test_no_grad_has_the_same_bits_and_a_frozen_cell_gives_the_rest(
    state: Any, implementation: str
) -> None:
    model = layer(implementation, state=state, max_steps=4)
    want = gradients(model, inputs())
    with torch.no_grad():
        assert torch.equal(model(inputs()), want["out"])
    model.f.W.requires_grad_(False)
    x = inputs().requires_grad_()
    out = model(x)
    (out.sin().sum() + out.square().sum()).backward()
    assert x.grad is not None and torch.equal(x.grad, want["x"])


def test_one_op_needs_no_compiler() -> None:
    """With compile=True, a cell that one op can run is not compiled; others are."""
    fastest = cell_choice.fastest(cell().b, "tanh")
    model = layer(None, max_steps=3, compile=True)
    got = gradients(model, inputs())
    if fastest is not None:
        want = gradients(layer(fastest, max_steps=3), inputs())
        assert all(torch.equal(got[name], value) for name, value in want.items())
    assert model.stats is not None
    assert model.stats.route.split(":")[0] == (fastest or "compiled")
    model(inputs(), save_at=[2])
    assert model.stats.route.startswith("compiled")


def test_a_gradient_for_the_start_and_for_y() -> None:
    results = []
    for implementation in ("solver", "composite"):
        z0 = torch.full((6, 16), 0.25, requires_grad=True)  # on the grid
        solution = layer(implementation, max_steps=3).solve(inputs(), z0=z0)
        (grad,) = torch.autograd.grad(solution.y.sum() + 2 * solution.z.sum(), z0)
        results.append((solution.y.detach(), solution.z.detach(), grad))
    assert all(map(torch.equal, *results))


@one_op
def test_compiled_around_it(implementation: str) -> None:
    """As one operator of the graph, by what was named."""
    model = layer(implementation, max_steps=4)
    want = gradients(model, inputs())
    assert model.stats is not None and model.stats.route.startswith(implementation)
    torch.compiler.reset()
    model.stats = None
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = inputs().requires_grad_()
    model.zero_grad()
    out = compiled(x)
    (out.sin().sum() + out.square().sum()).backward()
    got = {name: p.grad for name, p in model.named_parameters()} | {"x": x.grad, "out": out}
    assert got.keys() == want.keys()
    assert all(value is not None and torch.equal(want[name], value) for name, value in got.items())
    stats = model.stats
    assert stats is not None and stats.route.startswith(implementation)


# ---- its checks ------------------------------------------------------------------------------


@one_op
def test_a_changed_weight_raises(implementation: str) -> None:
    model = layer(implementation)
    out = model(inputs())
    model.f.W.data[0, 0] += 1e-3
    with pytest.raises(ReconstructionError, match="did not recover the initial state"):
        out.sum().backward()


@one_op
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("changed", ["x", "U"])
def test_what_the_derivative_of_u_reads_may_not_change(
    changed: str, dtype: torch.dtype, implementation: str
) -> None:
    """The walk back starts from u, and would not notice; the solver's evaluates f and does."""
    x = inputs(dtype=dtype).requires_grad_(changed == "U")
    model = layer(implementation, cell(dtype=dtype))
    out = model(x)
    read = x if changed == "x" else model.f.U
    before = read.detach().clone()
    read.data[[0, 1]] = before[[1, 0]]
    with pytest.raises(ReconstructionError, match="expected x, U and the parametrizations"):
        out.sum().backward(retain_graph=True)
    read.data.copy_(before)
    out.sum().backward()


@one_op
def test_a_checkpoint_computes_anew_what_it_compares(implementation: str) -> None:
    model, x = layer(implementation), inputs()
    want = gradients(model, x)
    out: Any = checkpoint(model, x.requires_grad_(), use_reentrant=False)
    (out.sin().sum() + out.square().sum()).backward()
    assert x.grad is not None and torch.equal(x.grad, want["x"])


@one_op
def test_a_float_state_past_its_precision_raises(implementation: str) -> None:
    model = layer(implementation, state=F32, beta=0.8, max_steps=30)
    with pytest.raises(ReconstructionError, match="its precision limit"):
        model(inputs()).sum().backward()


@one_op
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("act", ["tanh", "relu"])
def test_a_float_state_that_is_not_finite_raises(act: str, bad: float, implementation: str) -> None:
    x = inputs()
    z0 = torch.zeros(*x.shape[:-1], cell().features)
    z0[..., 0, 3] = bad
    model = layer(implementation, cell(act), state=F32, max_steps=2)
    z = model.solve(x, z0=z0).z
    with pytest.raises(ReconstructionError, match=r"relative error inf.* became NaN or infinite"):
        z.sum().backward()


@one_op
def test_nan_from_outside_is_no_reconstruction_error(implementation: str) -> None:
    model = layer(implementation, state=F32, max_steps=2)
    (model(inputs()) * float("nan")).sum().backward()
    assert model.f.W.grad is not None and bool(model.f.W.grad.isnan().all())


@one_op
def test_a_number_out_of_range_raises(implementation: str) -> None:
    with pytest.raises(RangeError, match="frac_bits=28"):
        layer(implementation, cell("relu"), frac_bits=28)(100 * inputs())


@one_op
def test_a_second_derivative_is_refused(implementation: str) -> None:
    model = layer(implementation)
    x = inputs().requires_grad_()
    with pytest.raises(RuntimeError, match="expected to be differentiated once"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)


@one_op
def test_many_gradients_at_once_are_refused(implementation: str) -> None:
    """As by the solver; one after the other they are the same as there."""
    model = layer(implementation, max_steps=2)
    with pytest.raises(RuntimeError, match="expected one gradient at a time where one op takes"):
        jacobian(model, inputs(2), vectorize=True)
    assert jacobian(model, inputs(2)).shape == (2, 16, 2, 12)
