"""Rows of the equilibrium cell that halt under a tol: when, where they stay, and their way back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels.ops.cell.arguments import Gradients, Solved
from tests.cell.halting import (
    assert_rows_are_those_of_fewer_steps,
    assert_rows_halt_when_they_should,
    by_steps,
)
from tests.cell.linear_cells import ACTS, Cell, make
from tests.conftest import BACKENDS
from torch_revdeq import LinearCell, RevDEQ, solve

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

IMPLEMENTATIONS = ["composite", *(["triton"] if "triton" in BACKENDS else [])]
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)

CELLS = [
    (F32, "exact", 0.5, 6, 0.1, "tanh"),
    (F32, "exact", 0.8, 5, 0.05, "gelu"),
    (F32, "exact", 1.3, 4, 0.5, "silu"),
    (F32, "float32", 0.5, 4, 0.2, "gelu"),
    (F16, "exact", 0.5, 4, 0.3, "silu"),
    (F16, "exact", 0.75, 3, 0.15, "tanh"),
    (BF16, "exact", 0.6, 2, 0.7, "tanh"),
]
"""(dtype of w, state, beta, steps, tol, act): some rows halt, and some do not."""


def both_ways(cell: Cell, implementation: str, **changed: Tensor) -> tuple[Solved, Gradients]:
    options: Any = {**cell.numbers._asdict(), "implementation": implementation}
    out = rk.linear_cell_forward(*cell.tensors, **options)
    given = out.ends(cell.grad_y, cell.grad_z, cell.numbers)._asdict() | cell.tensors._asdict()
    return out, rk.linear_cell_backward(**(given | changed), **options)


# ---- values and gradients --------------------------------------------------------------------


@implementations
@pytest.mark.parametrize(("dtype", "state", "beta", "steps", "tol", "act"), CELLS)
def test_rows_halt_below_tol_and_have_the_gradients_of_their_steps(
    dtype: torch.dtype,
    state: str,
    beta: float,
    steps: int,
    tol: float,
    act: str,
    implementation: str,
) -> None:
    cell = make(75, 32, dtype, state=state, beta=beta, steps=steps, tol=tol, act=act)
    out, back = both_ways(cell, implementation)
    assert len(out.taken.unique()) > 1
    assert_rows_halt_when_they_should(cell, out)
    assert_rows_are_those_of_fewer_steps(cell, out, back)


@implementations
@pytest.mark.parametrize("state", ["exact", "float32"])
def test_a_row_that_halts_has_the_bits_of_a_solve_of_its_steps(
    state: str, implementation: str
) -> None:
    cell = make(40, 32, F32, state=state, steps=4, tol=0.3)
    out, back = both_ways(cell, implementation)
    assert len(out.taken.unique()) > 1
    for rows, part in by_steps(cell, out.taken):
        every = replace(cell, steps=part.steps, tol=0.0)
        fixed, grads = both_ways(every, implementation)
        for name in ("y", "z"):
            assert torch.equal(getattr(out, name)[rows], getattr(fixed, name)[rows]), name
        for name in ("grad_u", "grad_z0"):
            assert torch.equal(getattr(back, name)[rows], getattr(grads, name)[rows]), name
        if state == "exact":
            assert torch.equal(out.fixed[:, rows], fixed.fixed[:, rows])


@implementations
def test_a_tol_that_nothing_reaches_changes_no_bit(implementation: str) -> None:
    cell = make(40, 32, F32, steps=5)
    fixed, grads = both_ways(cell, implementation)
    out, back = both_ways(replace(cell, tol=1e-30), implementation)
    assert out.taken.tolist() == [5] * 40
    assert all(map(torch.equal, out[:5], fixed[:5])) and all(map(torch.equal, back, grads))


@implementations
def test_a_tile_takes_no_step_that_none_of_its_rows_needs(implementation: str) -> None:
    """Digits that were never written are 0; beta has a digit in every byte, and most are not 0."""
    cell = make(80, 32, F32, steps=40, beta=0.95123, tol=0.5)
    out, back = both_ways(cell, implementation)
    most = int(out.taken.max())
    assert most < 5 and back.distance.item() == 0.0
    written = out.digits.flatten(1).any(1).tolist()
    assert written == [True] * 2 * most + [False] * 2 * (40 - most)


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


# ---- what goes wrong -------------------------------------------------------------------------


@implementations
def test_nan_halts_no_row(implementation: str) -> None:
    cell = make(20, 32, F32, steps=6, tol=0.3)
    u = cell.u.clone()
    u[4, 7] = float("nan")
    out, back = both_ways(replace(cell, u=u), implementation)
    assert out.taken[4] == 6 and bool(out.residual[4].isnan())
    assert out.flag.item() != 0 and bool(out.y[4].isnan().any())
    assert back.lost.item() <= 1 and bool(back.grad_u[4].isnan().any())


@implementations
@pytest.mark.parametrize("steps", [-1, 1, 1000])
def test_rows_that_took_other_steps_are_lost(steps: int, implementation: str) -> None:
    cell = make(20, 32, F32, steps=4, tol=0.3)
    out, _ = both_ways(cell, implementation)
    row = int((out.taken < 4).nonzero()[0])
    taken = out.taken.clone()
    taken[row] += steps
    _, back = both_ways(cell, implementation, taken=taken)
    assert back.lost.item() == 1 and bool(back.grad_w.isnan().all())
    assert bool(back.grad_u[row].isnan().all()) and back.grad_u.isnan().any(1).sum() == 1


ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"tol": -1.0}, ValueError, "tol: expected a number from 0 on, got -1.0"),
    ({"tol": float("nan")}, ValueError, "tol: expected a number from 0 on"),
    ({"tol": "small"}, TypeError, "tol: expected a Python number"),
    ({"tol": torch.tensor(0.1)}, TypeError, "tol: expected a Python number"),
]


@pytest.mark.parametrize(("changed", "kind", "message"), ERRORS)
def test_errors(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    cell = make(6, 16, F32)
    options: Any = {**cell.tensors._asdict(), **cell.numbers._asdict(), **changed}
    with pytest.raises(kind, match=f"^linear_cell_forward: {message}"):
        rk.linear_cell_forward(**options)


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


# ---- as torch and the layer call it ----------------------------------------------------------


@implementations
def test_opcheck(implementation: str) -> None:
    cell = make(5, 32, F32, steps=3, tol=0.2)
    space = getattr(torch.ops, {"composite": "revdeq", "triton": "revdeq_triton"}[implementation])
    leaves = [t.clone().requires_grad_() for t in cell.tensors]
    torch.library.opcheck(space.linear_cell_forward.default, (*leaves, *cell.numbers))
    out = Solved(*space.linear_cell_forward.default(*cell.tensors, *cell.numbers))
    ends = (t.clone() for t in out.ends(cell.grad_y, cell.grad_z, cell.numbers))
    torch.library.opcheck(space.linear_cell_backward.default, (*ends, *cell.tensors, *cell.numbers))


@implementations
def test_no_rows(implementation: str) -> None:
    out, back = both_ways(make(0, 32, F32, tol=0.1), implementation)
    assert out.taken.shape == out.residual.shape == (0,)
    assert torch.equal(back.grad_w, torch.zeros(32, 32))


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


@implementations
def test_a_layer_tells_what_its_rows_did(implementation: str) -> None:
    torch.manual_seed(0)
    layer = RevDEQ(
        LinearCell(12, 32), max_steps=16, tol=0.05, per_sample=True, implementation=implementation
    )
    general = RevDEQ(layer.f, max_steps=16, tol=0.05, per_sample=True, implementation="solver")
    x = torch.randn(24, 12)
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
