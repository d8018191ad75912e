"""Rows of the equilibrium cell that halt under a tol: when, in which state, and their gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import revdeq_kernels as rk
from tests.cell.conftest import Slow, each, every
from tests.cell.halting import (
    assert_rows_are_those_of_fewer_steps,
    assert_rows_halt_when_they_should,
    by_steps,
)
from tests.cell.linear_cells import ACTS, SMALL, both_ways, make, small
from tests.cell.tolerances import sums_of
from torch_revdeq import LinearCell, RevDEQ, solve

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

# ---- of every implementation --------------------------------------------------------------------

HALTING = [
    (75, 32, F32, "exact", 0.5, 6, 0.1, "tanh"),
    (75, 32, F32, "exact", 0.8, 5, 0.05, "gelu"),
    (75, 32, F32, "exact", 1.3, 4, 0.5, "silu"),
    (75, 32, F32, "float32", 0.5, 3, 0.3, "gelu"),
    (75, 32, F16, "exact", 0.5, 4, 0.3, "silu"),
    (75, 32, F16, "exact", 0.75, 3, 0.15, "tanh"),
    (75, 32, BF16, "exact", 0.6, 2, 0.7, "tanh"),
]
"""Some rows halt, and some do not."""


@each(
    "rows d dtype state beta steps tol act",
    composite=HALTING,
    cpu=[*HALTING, (201, 33, F32, "exact", 0.5, 6, 0.1, "gelu_tanh")],
    triton=HALTING,
    gluon=[
        (133, 64, F16, "exact", 0.5, 3, 0.5, "silu"),
        (70, 64, F16, "exact", 0.75, 2, 0.6, "tanh"),
        Slow((70, 128, F16, "exact", 0.6, 2, 0.77, "tanh")),
    ],
)
def test_rows_halt_below_tol_and_have_the_gradients_of_their_steps(
    implementation: str,
    rows: int,
    d: int,
    dtype: torch.dtype,
    state: str,
    beta: float,
    steps: int,
    tol: float,
    act: str,
) -> None:
    cell = make(rows, d, dtype, state=state, beta=beta, steps=steps, tol=tol, act=act)
    out, back = both_ways(cell, implementation)
    assert len(out.taken.unique()) > 1
    sums = sums_of(implementation, dtype)
    assert_rows_halt_when_they_should(cell, out, sums)
    assert_rows_are_those_of_fewer_steps(cell, out, back, sums)


@each(
    "state rows steps tol",
    composite=[(state, 40, 4, 0.3) for state in ("exact", "float32")],
    cpu=[(state, 240, 4, 0.3) for state in ("exact", "float32")],
    triton=[(state, 40, 4, 0.3) for state in ("exact", "float32")],
    gluon=[Slow(("exact", 70, 2, 0.95)), ("float32", 70, 2, 0.95)],
)
def test_a_row_that_halts_has_the_bits_of_a_solve_of_its_steps(
    implementation: str, state: str, rows: int, steps: int, tol: float
) -> None:
    cell = small(implementation, rows, state=state, steps=steps, tol=tol)
    out, back = both_ways(cell, implementation)
    assert len(out.taken.unique()) > 1
    for some, part in by_steps(cell, out.taken):
        fixed, grads = both_ways(replace(cell, steps=part.steps, tol=0.0), implementation)
        pairs = [(out.y, fixed.y), (out.z, fixed.z)]
        pairs += [(back.grad_u, grads.grad_u), (back.grad_z0, grads.grad_z0)]
        if state == "exact":
            pairs += zip(out.fixed, fixed.fixed, strict=True)
        assert [torch.equal(got[some], want[some]) for got, want in pairs] == [True] * len(pairs)


@every
def test_a_tol_that_nothing_reaches_changes_no_bit(implementation: str) -> None:
    cell = small(implementation, 20, steps=2)
    fixed, grads = both_ways(cell, implementation)
    out, back = both_ways(replace(cell, tol=1e-30), implementation)
    assert out.taken.tolist() == [2] * 20
    assert all(map(torch.equal, out[:5], fixed[:5])) and all(map(torch.equal, back, grads))


@each(
    "rows steps tol",
    composite=[(80, 40, 0.5)],
    cpu=[(80, 40, 0.5), (201, 40, 0.5)],
    triton=[(80, 40, 0.5)],
    gluon=[(8, 6, 0.6)],
)
def test_a_tile_takes_no_step_that_none_of_its_rows_needs(
    implementation: str, rows: int, steps: int, tol: float
) -> None:
    """Digits that were never written are 0; beta has a digit in every byte, and most are not 0."""
    cell = small(implementation, rows, steps=steps, beta=0.95123, tol=tol)
    out, back = both_ways(cell, implementation)
    most = int(out.taken.max())
    assert most < min(steps, 5) + 1 and most < steps and back.distance.item() == 0.0
    written = out.digits.flatten(1).any(1).tolist()
    assert written == [True] * 2 * most + [False] * 2 * (steps - most)


@every
def test_nan_halts_no_row(implementation: str) -> None:
    cell = small(implementation, 8, steps=3, tol=0.5)
    u = cell.u.clone()
    u[4, 7] = float("nan")
    out, back = both_ways(replace(cell, u=u), implementation)
    assert out.taken[4] == 3 and bool(out.residual[4].isnan())
    assert out.flag.item() != 0 and bool(out.y[4].isnan().any())
    assert back.lost.item() == (8 if implementation == "composite" else 1)
    assert back.distance.item() == float("inf") and bool(back.grad_u[4].isnan().all())


@every
@pytest.mark.parametrize("steps", [-1, 1, 1000])
def test_rows_that_took_other_steps_are_lost(steps: int, implementation: str) -> None:
    cell = small(implementation, 20, steps=3, tol=0.5)
    options: Any = cell.numbers._asdict() | {"implementation": implementation}
    taken = rk.linear_cell_forward(*cell.tensors, **options).taken.clone()
    row = int((taken < 3).nonzero()[0])
    taken[row] += steps
    _, back = both_ways(cell, implementation, taken=taken)
    assert back.lost.item() == 1 and bool(back.grad_w.isnan().all())
    assert bool(back.grad_u[row].isnan().all()) and back.grad_u.isnan().any(1).sum() == 1


# ---- as the solver -------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["exact", "float32"])
@pytest.mark.parametrize("act", list(ACTS))
def test_it_has_the_bits_of_solve_per_sample(act: str, state: str) -> None:
    cell = make(40, 32, F32, steps=12, tol=0.02, act=act, state=state)
    out, back = both_ways(cell, "composite")
    leaves = [t.clone().requires_grad_() for t in cell.tensors]
    u, w, z0 = leaves
    options: Any = {"state": "exact", "frac_bits": 20} if state == "exact" else {"state": F32}
    solution = solve(
        lambda s, u: cell.f(s, u, w),
        *(z0, u),
        **{"beta": cell.beta, "max_steps": 12, "tol": cell.tol, "per_sample": True, **options},
    )
    taken = solution.stats.sample_steps
    assert taken is not None and len(taken.unique()) > 1 and torch.equal(taken, out.taken.long())
    assert torch.equal(out.y, solution.y) and torch.equal(out.z, solution.z)
    grads = torch.autograd.grad([solution.y, solution.z], leaves, [cell.grad_y, cell.grad_z])
    assert all(map(torch.equal, grads, back[:3]))


@pytest.mark.parametrize(
    ("taken", "tol"), [(None, 0.1), (torch.ones(5, dtype=torch.int32), 0.1), ([1] * 6, 0.0)]
)
def test_steps_of_another_solve_are_refused(taken: Any, tol: float) -> None:
    cell = make(6, 16, F32, tol=tol)
    options: Any = cell.numbers._asdict()
    out = rk.linear_cell_forward(*cell.tensors, **options)
    ends = out.ends(cell.grad_y, cell.grad_z, cell.numbers)[:5]
    if isinstance(taken, list):
        taken = torch.tensor(taken, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^linear_cell_backward: taken: expected shape"):
        rk.linear_cell_backward(*ends, *cell.tensors, **options, taken=taken)


def test_of_no_rows_a_layer_tells_what_the_solver_tells() -> None:
    cell, found = LinearCell(12, 32), []
    for implementation in ("composite", "solver"):
        options: Any = {"tol": 0.05, "per_sample": True, "implementation": implementation}
        layer = RevDEQ(cell, **options)
        layer(torch.zeros(0, 12))
        stats = layer.stats
        assert stats is not None and stats.sample_steps is not None
        found.append((stats.steps, stats.residual, stats.converged, stats.sample_steps.shape))
    assert found[0] == found[1]


def test_the_residual_has_no_gradient() -> None:
    cell = make(6, 16, F32, tol=0.1)
    u, w, z0 = (t.clone().requires_grad_() for t in cell.tensors)
    out = rk.linear_cell_forward(u, w, z0, **cell.numbers._asdict())
    assert out.z.requires_grad and not out.residual.requires_grad


@every
def test_a_layer_tells_what_its_rows_did(implementation: str) -> None:
    torch.manual_seed(0)
    options: Any = {"max_steps": 16, "tol": 0.05, "per_sample": True}
    cell = LinearCell(12, SMALL[implementation][0])
    layer = RevDEQ(cell, implementation=implementation, **options)
    general = RevDEQ(cell, implementation="solver", **options)
    x = torch.randn(12, 12)
    results = []
    for model in (layer, general):
        model.zero_grad()
        out = model(x)
        out.square().sum().backward()
        stats = model.stats
        assert stats is not None and stats.sample_steps is not None
        assert stats.steps == int(stats.sample_steps.max()) and stats.nfe == 2 * stats.steps
        assert stats.converged and 0 < stats.residual < 0.05
        grad = layer.f.W.grad
        assert grad is not None
        results.append((out.detach(), stats.sample_steps, grad.clone()))
    assert layer.stats is not None and layer.stats.route == f"{implementation}: it was named"
    assert torch.equal(results[0][1], results[1][1])  # no residual is within roundings of tol
    if implementation == "composite":
        assert all(map(torch.equal, *results))


def test_samples_of_many_rows_are_the_solvers() -> None:
    options: Any = {"tol": 0.1, "per_sample": True, "implementation": "composite"}
    layer = RevDEQ(LinearCell(12, 32), **options)
    with pytest.raises(ValueError, match="a sample is a row to it, got z0 with 3 dimensions"):
        layer(torch.randn(4, 5, 12))
