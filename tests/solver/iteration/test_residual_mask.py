"""``residual_mask``: what counts under tol, whatever stands elsewhere, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from tests.solver.cells import MLP
from tests.solver.iteration.samples import ADJOINTS
from torch_revdeq import LinearCell, RevDEQ, solve
from torch_revdeq.iteration.residual import relative_residual, sample_residuals
from torch_revdeq.testing import assert_exact_gradients

F32, F64 = torch.float32, torch.float64
EVERY = [*ADJOINTS, "backprop"]
LENGTHS = torch.tensor([5, 2, 3])
MASK = torch.arange(5) < LENGTHS[:, None]  # [batch, length]: padded at the end
SUMS = 1e-12
"""Norms are summed in float64, over at most 60 numbers, in an order that the padding changes."""


def inputs(*, dtype: torch.dtype = F32) -> tuple[Tensor, Tensor]:
    """z0 and x of [batch, length, features]; the padded tokens arrive last."""
    torch.manual_seed(0)
    x = 0.3 * torch.randn(3, 5, 4, dtype=dtype)
    return torch.where(MASK[..., None], 0.1, 50.0).expand_as(x).to(dtype), x.requires_grad_()


def tokens(z: Tensor, x: Tensor) -> Tensor:
    """Every token for itself."""
    return 0.6 * torch.tanh(z) + x


class Attention(nn.Module):
    """Tokens that read one another, but no padded one."""

    def __init__(self, d: int = 4) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        scores = (self.q(z) @ z.mT).masked_fill(~MASK[:, None], float("-inf"))
        return 0.5 * torch.tanh(torch.softmax(scores, -1) @ self.v(z)) + x


# ---- the residual --------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", EVERY)
@pytest.mark.parametrize("state", ["exact", F32, F64], ids=str)
def test_the_solve_stops_where_that_of_the_other_tokens_does(state: Any, adjoint: Any) -> None:
    z0, x = inputs()
    options: dict[str, Any] = {"tol": 1e-2, "max_steps": 60, "beta": 0.6, "state": state}
    options["frac_bits"] = 18 if state == "exact" else "auto"  # which the padding has a part in
    got = solve(tokens, z0, x, residual_mask=MASK, adjoint=adjoint, **options).stats
    alone = solve(tokens, z0[MASK], x[MASK], adjoint=adjoint, **options).stats
    everything = solve(tokens, z0, x, adjoint=adjoint, **options).stats
    assert got.steps == alone.steps < everything.steps < 60
    assert got.residual == pytest.approx(alone.residual, rel=SUMS) and got.converged


def test_of_all_steps_it_is_measured_too() -> None:
    """Without a tol, and by an adjoint that takes none."""
    z0, x = inputs()
    for adjoint in (*EVERY, "functional"):
        options: dict[str, Any] = {"max_steps": 3, "state": F32, "adjoint": adjoint}
        got = solve(tokens, z0, x, residual_mask=MASK, **options)
        alone = solve(tokens, z0[MASK], x[MASK], **options)
        assert got.stats.residual == pytest.approx(alone.stats.residual, rel=SUMS)
        assert got.stats.residual != solve(tokens, z0, x, **options).stats.residual
        assert got.stats.converged is None


@pytest.mark.parametrize("adjoint", EVERY)
@pytest.mark.parametrize("per_sample", [False, True, 2])
@pytest.mark.parametrize("worst", [float("nan"), float("inf"), 1e30])
def test_what_is_padded_may_be_anything(worst: float, per_sample: Any, adjoint: Any) -> None:
    z0, x = inputs()

    def f(z: Tensor, x: Tensor) -> Tensor:
        return torch.where(MASK[..., None], tokens(z, x), worst)

    options: dict[str, Any] = {"tol": 1e-2, "max_steps": 60, "state": F32, "residual_mask": MASK}
    options |= {"per_sample": per_sample, "adjoint": adjoint}
    got, want = solve(f, z0, x, **options), solve(tokens, z0, x, **options)
    assert got.stats.steps == want.stats.steps < 60 and got.stats.converged
    assert got.stats.residual == want.stats.residual
    assert torch.equal(got.z[MASK], want.z[MASK])
    if per_sample:
        steps, others = got.stats.sample_steps, want.stats.sample_steps
        assert steps is not None and others is not None and torch.equal(steps, others)


@pytest.mark.parametrize("form", [(2,), (2, 3), (2, 3, 4), ()], ids=str)
def test_the_norms_are_those_of_what_counts(form: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    z, f = torch.randn(2, 2, 3, 4)
    for mask in (torch.rand(form) < 0.6, torch.ones(form).bool(), torch.zeros(form).bool()):
        wide = mask.view(*form, *(1,) * (3 - len(form))).expand(2, 3, 4)
        options: dict[str, Any] = {"max_steps": 1, "state": F32, "residual_mask": mask}
        solution = solve(lambda y: f, z, **options)
        a, b = 0.5 * (z + f)[wide].double(), f[wide].double()
        want = (a - b).norm() / (1e-5 + b.norm())
        # y is rounded to float32 once, and its product with beta is exact.
        assert solution.stats.residual == pytest.approx(float(want), rel=2**-20)
        whole = sample_residuals([z], [f], 1, [wide])
        parts = [
            sample_residuals([z[i : i + 1]], [f[i : i + 1]], 1, [wide[i : i + 1]]) for i in (0, 1)
        ]
        assert torch.equal(whole, torch.cat(parts))
    assert relative_residual([z], [f]) > 0


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("per_sample", [False, True, 2])
def test_gradients_have_the_bits_of_stored_activations(per_sample: Any, adjoint: str) -> None:
    z0, x = inputs()
    options: dict[str, Any] = {"tol": 1e-2, "max_steps": 30, "per_sample": per_sample}
    stats = assert_exact_gradients(
        Attention(), z0, x, residual_mask=MASK, adjoint=adjoint, **options
    )
    assert stats.converged and stats.steps < 30


@pytest.mark.parametrize("adjoint", EVERY)
def test_the_gradient_is_that_of_the_steps_taken(adjoint: Any) -> None:
    z0, x = inputs()
    options: dict[str, Any] = {"beta": 0.6, "adjoint": adjoint}
    got = solve(tokens, z0, x, tol=1e-2, max_steps=60, residual_mask=MASK, **options)
    want = solve(tokens, z0, x, max_steps=got.stats.steps, **options)
    grads = [torch.autograd.grad(s.z.square().sum(), x)[0] for s in (got, want)]
    assert torch.equal(got.z, want.z) and torch.equal(*grads)
    assert (grads[0][~MASK] != 0).all()


def test_second_derivatives() -> None:
    z0, x = inputs(dtype=F64)
    seen = []
    for mask in (MASK, None):
        options: dict[str, Any] = {"max_steps": 4, "residual_mask": mask}
        z = solve(tokens, z0, x, **options).z
        (grad,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
        seen.append(torch.autograd.grad(grad.square().sum(), x)[0])
    assert torch.equal(*seen)


# ---- samples -------------------------------------------------------------------------------------


def test_each_sample_is_judged_by_what_counts_of_it() -> None:
    z0, x = inputs()
    options: dict[str, Any] = {"tol": 1e-2, "max_steps": 60, "state": F64}
    got = solve(tokens, z0, x, per_sample=True, residual_mask=MASK, **options).stats
    alone = [
        solve(tokens, z0[i, :n], x[i, :n], **options).stats.steps for i, n in enumerate(LENGTHS)
    ]
    assert got.sample_steps is not None and got.sample_steps.tolist() == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("adjoint", EVERY)
def test_a_sample_of_which_nothing_counts_halts_at_the_first_check(
    adjoint: Any, every: int
) -> None:
    z0, x = inputs()
    options: dict[str, Any] = {"tol": 1e-6, "max_steps": 60, "check_every": every}
    stats = solve(tokens, z0, x, per_sample=2, residual_mask=MASK, adjoint=adjoint, **options).stats
    assert stats.sample_steps is not None and stats.sample_steps.shape == MASK.shape
    assert (stats.sample_steps[~MASK] == every).all()
    assert (stats.sample_steps[MASK] > every).all()
    none = torch.zeros_like(MASK)
    stats = solve(tokens, z0, x, residual_mask=none, adjoint=adjoint, **options).stats
    assert stats.steps == every and stats.residual == 0.0


# ---- trees, layers, compilers, ranks -------------------------------------------------------------


def pair(z: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    return {"a": tokens(z["a"], x), "b": 0.5 * z["b"] + 1.0}


def test_trees_of_tensors() -> None:
    z0, x = inputs()
    start = {"a": z0, "b": torch.zeros(3, 5)}
    options: dict[str, Any] = {"max_steps": 3, "state": F32}

    def residual(mask: Any, of: Any = ..., key: str = "") -> float:
        if key:
            f = (lambda z: tokens(z, x[of])) if key == "a" else (lambda z: 0.5 * z + 1.0)
            return solve(f, start[key][of], **options).stats.residual
        return solve(pair, start, x, residual_mask=mask, **options).stats.residual

    both = max(residual(None, MASK, "a"), residual(None, MASK, "b"))
    assert residual(MASK) == pytest.approx(both, rel=SUMS)  # one for all leaves
    assert residual({"a": MASK, "b": MASK}) == residual(MASK)
    other = torch.ones(3, dtype=torch.bool)  # of another number of dimensions
    mixed = max(residual(None, MASK, "a"), residual(None, ..., "b"))
    assert residual({"a": MASK, "b": other}) == pytest.approx(mixed, rel=SUMS)
    assert residual({"a": MASK, "b": None}) == pytest.approx(mixed, rel=SUMS)


def test_a_layer_takes_it_in_its_call() -> None:
    z0, x = inputs()
    layer = RevDEQ(tokens, tol=1e-2, max_steps=60)
    want = solve(tokens, z0, x, tol=1e-2, max_steps=60, residual_mask=MASK)
    assert torch.equal(layer(x, z0=z0, residual_mask=MASK), want.z)
    assert layer.stats is not None and layer.stats.steps == want.stats.steps
    assert layer.solve(x, z0=z0).stats.steps > want.stats.steps
    always = RevDEQ(tokens, tol=1e-2, max_steps=60, residual_mask=MASK)
    assert torch.equal(always(x, z0=z0), want.z)


def test_one_op_leaves_it_to_the_solver() -> None:
    cell = LinearCell(4, 4)
    layer = RevDEQ(cell, tol=0.1, per_sample=2, implementation="composite")
    with pytest.raises(ValueError, match="it supports only residual_mask=None"):
        layer(torch.randn(3, 5, 4), residual_mask=MASK)


def test_compiled_it_is_an_input() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    cell = MLP(4)
    layer = RevDEQ(cell, tol=1e-1, max_steps=30)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    z0, x = inputs()
    steps = []
    for mask in (MASK, torch.ones_like(MASK), ~MASK):
        got = compiled(x, z0=z0, residual_mask=mask)
        want = solve(cell, z0, x, tol=1e-1, max_steps=30, residual_mask=mask)
        assert torch.equal(got, want.z)
        wrt = [x, *cell.parameters()]
        grads = [torch.autograd.grad(z.square().sum(), wrt) for z in (got, want.z)]
        assert all(map(torch.equal, *grads))
        steps.append(want.stats.steps)
    assert len(set(steps)) > 1


def test_with_a_process_group() -> None:
    z0, x = inputs()
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        options: dict[str, Any] = {"tol": 1e-2, "max_steps": 60, "residual_mask": MASK}
        for per_sample in (False, True, 2):
            group = dist.group.WORLD
            got = solve(tokens, z0, x, per_sample=per_sample, process_group=group, **options)
            want = solve(tokens, z0, x, per_sample=per_sample, **options)
            assert torch.equal(got.z, want.z) and got.stats.steps == want.stats.steps
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("adjoint", ["functional", "backprop"])
def test_inside_of_a_transform_nothing_is_measured(adjoint: Any) -> None:
    """Also where the mask is one of the tensors that are mapped over."""
    z0, x = inputs()

    def run(z0: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        return solve(tokens, z0, x, state=F32, adjoint=adjoint, residual_mask=mask).z

    want = solve(tokens, z0, x, state=F32, adjoint=adjoint).z
    assert torch.equal(torch.func.vmap(run)(z0, x, MASK), want)
    got = torch.func.grad(lambda x: run(z0, x, MASK).square().sum())(x)
    assert torch.equal(got, torch.autograd.grad(want.square().sum(), x)[0])
    each = torch.func.vmap(torch.func.grad(lambda x, z0, m: run(z0, x, m).square().sum()))
    assert torch.equal(each(x, z0, MASK), got)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "mask", "message"),
    [
        (TypeError, MASK.int(), r"torch.int32; pass residual_mask.bool\(\)"),
        (TypeError, MASK.float(), r"torch.float32; pass residual_mask.bool\(\)"),
        (TypeError, MASK.numpy(), "torch.as_tensor"),
        (TypeError, True, "got True; pass"),
        (ValueError, MASK[0], r"leaf of shape \(3, 5, 4\), got \(5,\); pass"),
        (ValueError, MASK.T, r"leaf of shape \(3, 5, 4\), got \(5, 3\); pass"),
        (ValueError, MASK[:, :1], r"leaf of shape \(3, 5, 4\), got \(3, 1\)"),
        (ValueError, MASK[..., None, None].expand(3, 5, 4, 1), r"\(3, 5, 4\), got \(3, 5, 4, 1\)"),
        (ValueError, MASK.to("meta"), "on the device of z0, cpu, got meta"),
        (TypeError, [MASK], "a bool tensor, or a pytree of them like z0"),
        (TypeError, {"a": MASK}, "a bool tensor, or a pytree of them like z0"),
    ],
)
def test_errors(error: type[Exception], mask: Any, message: str) -> None:
    z0, x = inputs()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(error, match="residual_mask: expected "):
            solve(tokens, z0, x, residual_mask=mask)
    with pytest.raises(error, match=message):
        RevDEQ(tokens)(x, z0=z0, residual_mask=mask)


def test_one_mask_that_fits_one_leaf_only() -> None:
    start = {"a": torch.zeros(3, 5, 4), "b": torch.zeros(3)}
    with pytest.raises(
        ValueError, match=r"a leaf of shape \(3,\), got \(3, 5\); .* pytree of masks"
    ):
        solve(pair, start, torch.zeros(3, 5, 4), residual_mask=MASK)
