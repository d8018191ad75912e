"""``LinearCell`` under RevDEQ: by the solver, or by one op for all steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revdeq_kernels as rk
from revdeq_kernels.ops.cell import checks as cell_checks
from revdeq_kernels.ops.cell import choice as cell_choice
from tests.conftest import BACKENDS
from tests.solver.cell.linear_layers import BF16, F32, cell, gradients, inputs, layer
from torch_revdeq import LinearCell, RangeError, ReconstructionError, RevDEQ, solve

# ---- the routes ------------------------------------------------------------------------------


def test_the_solver_runs_where_no_kernel_was_measured() -> None:
    model, f = layer(None), cell()
    x = inputs()
    out = model(x)
    assert torch.equal(out, solve(f, torch.zeros(6, 16), x).z)
    assert model.stats is not None
    assert model.stats.route.startswith("solver: no kernel that takes all steps was measured")
    assert "16 features in torch.float32 on cpu" in model.stats.route


def test_what_was_measured_runs_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_choice, "fastest", lambda w: "composite")
    model = layer(None)
    model(inputs())
    assert model.stats is not None and model.stats.route == "composite: it is the fastest here"
    model = layer(None, tol=1e-3)
    model(inputs())
    assert model.stats is not None
    assert model.stats.route.startswith("solver: it takes tol with per_sample=True, or neither")


triton = pytest.mark.skipif("triton" not in BACKENDS, reason="Triton's interpreter is off")


@triton
@pytest.mark.parametrize("named", ["here", "as the backend"])
def test_one_launch_gives_what_the_solver_gives(named: str) -> None:
    """They differ in the order of their sums."""
    torch.manual_seed(0)
    f, x = LinearCell(12, 32), inputs(40)
    want = gradients(layer("solver", f, max_steps=2), x)
    if named == "here":
        model = layer("triton", f, max_steps=2)
        got = gradients(model, x)
    else:
        model = layer(None, f, max_steps=2)
        with rk.backend("triton"):
            got = gradients(model, x)
    assert model.stats is not None and model.stats.reconstruction_error == 0.0
    name = "it was named" if named == "here" else "the backend was named"
    assert model.stats.route == f"triton: {name}"
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


def test_sixteen_bits() -> None:
    """One op computes f in float32, the solver in bfloat16: they differ by f's roundings."""
    results = []
    for implementation in ("solver", "composite"):
        f = cell(dtype=BF16)
        model = layer(implementation, f, max_steps=6)
        results.append(gradients(model, inputs(dtype=BF16)))
        assert {t.dtype for t in results[-1].values()} == {BF16}
    unit = 2.0**-8  # the product, its sum with u, and act: a rounding each, of numbers below 2
    # f contracts to 0.7 of a distance, so that they add up to less than 1 / (1 - 0.7) times.
    assert (results[0]["out"] - results[1]["out"]).abs().max() < 3 * 2 * unit / 0.3


def test_a_start_in_float32_for_parameters_of_16_bits() -> None:
    model = layer("composite", cell(dtype=BF16))
    out = model(inputs(dtype=BF16), z0=torch.zeros(6, 16))
    assert out.dtype == F32


@pytest.mark.parametrize("state", ["exact", F32])
def test_no_grad_has_the_same_bits_and_a_frozen_cell_gives_the_rest(state: Any) -> None:
    model = layer("composite", state=state, max_steps=4)
    want = gradients(model, inputs())
    with torch.no_grad():
        assert torch.equal(model(inputs()), want["out"])
    model.f.W.requires_grad_(False)
    x = inputs().requires_grad_()
    out = model(x)
    (out.sin().sum() + out.square().sum()).backward()
    assert x.grad is not None and torch.equal(x.grad, want["x"])


def test_a_gradient_for_the_start_and_for_y() -> None:
    results = []
    for implementation in ("solver", "composite"):
        z0 = torch.full((6, 16), 0.25, requires_grad=True)  # on the grid
        solution = layer(implementation, max_steps=3).solve(inputs(), z0=z0)
        (grad,) = torch.autograd.grad(solution.y.sum() + 2 * solution.z.sum(), z0)
        results.append((solution.y.detach(), solution.z.detach(), grad))
    assert all(map(torch.equal, *results))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo's, of any input
def test_compiled_around_it() -> None:
    """As one operator of the graph, by what was named."""
    model = layer("composite", max_steps=4)
    want = gradients(model, inputs())
    assert model.stats is not None and model.stats.route.startswith("composite")
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
    assert stats is not None and stats.route.startswith("composite")


# ---- what one op does not take ---------------------------------------------------------------


class Doubled(LinearCell):
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return super().forward(z, 2 * x)


def hooked() -> LinearCell:
    f = cell()
    f.register_forward_hook(lambda module, args, out: out)
    return f


UNSUITED: list[tuple[dict[str, Any], str]] = [
    ({"tol": 1e-3}, "it takes tol with per_sample=True, or neither, got tol=0.001"),
    ({"tol": 1e-3, "per_sample": True, "check_every": 2}, "it takes check_every=1 alone"),
    ({"adjoint": "backprop"}, "it takes adjoint='reversible' alone"),
    ({"check": False}, "it takes check=True alone"),
    ({"save_at": [2]}, "it takes save_at=.. alone"),
    ({"backward_steps": 2}, "it takes backward_steps=None alone"),
    ({"store_last": 1}, "it takes store_last=0 alone"),
    ({"state": torch.float64}, "it takes state='exact' or torch.float32, got torch.float64"),
    ({"beta": torch.tensor(0.5)}, "it takes one number for beta, got Tensor"),
    ({"beta": [0.5] * 8}, "it takes one number for beta, got list"),
    ({"f": Doubled(12, 16)}, "Doubled has a forward of its own"),
    ({"f": hooked()}, "the cell has hooks"),
    ({"f": LinearCell(12, 16, dtype=torch.float64)}, "it takes parameters in float32"),
    ({"f": LinearCell(12, 16, dtype=BF16)}, "it takes x and z0 in torch.bfloat16"),
]


@pytest.mark.parametrize(("options", "reason"), UNSUITED)
def test_what_one_op_does_not_take_is_refused_by_name_and_else_solved(
    options: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    f = options.get("f", cell())
    rest = {name: value for name, value in options.items() if name != "f"}
    dtype = F32 if f.W.dtype == BF16 else f.W.dtype
    x = inputs(dtype=dtype)
    with pytest.raises(ValueError, match=f"^implementation: 'composite' cannot take.*{reason}"):
        layer("composite", f, **rest)(x)
    if f.W.dtype == BF16:
        return  # nor does F.linear take another x
    monkeypatch.setattr(cell_choice, "fastest", lambda w: "composite")
    model = layer(None, f, **rest)
    assert torch.equal(model(x), solve(f, f.start(x), x, **rest).z)
    assert model.stats is not None and model.stats.route.startswith("solver: ")


def test_a_second_start_and_autocast_and_transforms() -> None:
    model = layer("composite")
    with pytest.raises(ValueError, match="it takes y0=None alone"):
        model(inputs(), y0=torch.ones(6, 16))
    with torch.autocast("cpu", BF16), pytest.raises(ValueError, match="does not follow autocast"):
        model(inputs())
    with pytest.raises(ValueError, match="no part in the transforms"):
        torch.func.vmap(model)(inputs()[None])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps: expected"),
        ({"beta": 1.0}, "beta: expected"),
        ({"frac_bits": 40}, "frac_bits: expected"),
        ({"state": F32, "frac_bits": 8}, "frac_bits: expected 'auto' for a float state"),
        ({"rng": "once"}, "rng: expected one of"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer("composite", **options)(inputs())


def test_names() -> None:
    with pytest.raises(ValueError, match="implementation: expected one of 'solver', 'composite'"):
        layer("cudnn")(inputs())
    with pytest.raises(TypeError, match="implementation: expected None for a cell of Linear"):
        RevDEQ(nn.Linear(4, 4), implementation="composite")
    w = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="implementation: expected one of 'composite'"):
        rk.linear_cell_forward(w, w, w, 0.5, 1, implementation="cudnn")


# ---- its checks ------------------------------------------------------------------------------


def test_a_changed_weight_raises() -> None:
    model = layer("composite")
    out = model(inputs())
    model.f.W.data[0, 0] += 1e-3
    with pytest.raises(ReconstructionError, match="expected the way back to end at its start"):
        out.sum().backward()


def test_a_float_state_past_its_precision_raises() -> None:
    model = layer("composite", state=F32, beta=0.8, max_steps=30)
    with pytest.raises(ReconstructionError, match="its precision is used up"):
        model(inputs()).sum().backward()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("act", ["tanh", "relu"])
def test_a_float_state_that_is_not_finite_raises(act: str, bad: float) -> None:
    x = inputs()
    z0 = torch.zeros(*x.shape[:-1], cell().features)
    z0[..., 0, 3] = bad
    model = layer("composite", cell(act), state=F32, max_steps=2)
    z = model.solve(x, z0=z0).z
    with pytest.raises(ReconstructionError, match=r"a distance of inf .* became NaN or infinite"):
        z.sum().backward()


def test_nan_from_outside_is_no_reconstruction_error() -> None:
    model = layer("composite", state=F32, max_steps=2)
    (model(inputs()) * float("nan")).sum().backward()
    assert model.f.W.grad is not None and bool(model.f.W.grad.isnan().all())


def test_a_number_out_of_range_raises() -> None:
    with pytest.raises(RangeError, match="frac_bits=28"):
        layer("composite", cell("relu"), frac_bits=28)(100 * inputs())


def test_a_second_derivative_is_refused() -> None:
    model = layer("composite")
    x = inputs().requires_grad_()
    with pytest.raises(RuntimeError, match="expected to be differentiated once"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
