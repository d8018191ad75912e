"""The equilibrium cell's Gluon kernels, their source executed in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from revdeq_kernels.core import backends, first_use
from revdeq_kernels.ops.cell import choice as cell_choice
from revdeq_kernels.ops.cell.arguments import Gradients, Solved
from tests.cell.halting import (
    assert_rows_are_those_of_fewer_steps,
    assert_rows_halt_when_they_should,
)
from tests.cell.linear_cells import ACTS, Cell, make, of_rows, run
from tests.cell.tolerances import assert_within_bounds
from tests.conftest import BACKENDS
from torch_revdeq import LinearCell, RevDEQ

if "triton" not in BACKENDS:
    pytest.skip("Triton's interpreter is off", allow_module_level=True)

from revdeq_kernels.triton.kernels import gluon_cell
from revdeq_kernels.triton.launch import cell as cell_launch
from tests.cell.gluon_interpreter import interpreted

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

TILE = gluon_cell.CONFIGURATIONS["bf16"][64].tile
LAUNCHER = cell_launch.Launcher(interpreted(gluon_cell))


@pytest.fixture
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """implementation="gluon" runs here."""
    monkeypatch.setattr(cell_choice, "why_not", lambda implementation, w: None)
    monkeypatch.setattr(cell_choice, "launcher", lambda implementation: LAUNCHER)


here = pytest.mark.usefixtures("_interpreted")

# ---- against the definition in real numbers --------------------------------------------------

FEW = [
    (101, 64, BF16, "exact", 0.5, 1, "tanh"),
    (165, 64, F16, "exact", 0.75, 2, "gelu"),
    (5, 128, F16, "exact", 1.3, 1, "silu"),
    (37, 64, F16, "float32", 0.5, 1, "relu"),
    (37, 128, F32, "exact", 0.5, 2, "tanh"),
    (21, 64, F32, "float32", 0.6, 1, "silu"),
]
ALL = [
    (rows, d, dtype, state, beta, 1, act)
    for act in ACTS
    for rows, d, dtype in ((64, 64, BF16), (101, 64, F16), (101, 128, F16), (37, 128, F32))
    for state, beta in (("exact", 0.5), ("exact", 0.6), ("float32", 0.5))
    if dtype != BF16 or state == "exact"
]
"""With many features in bfloat16 a float32 state leaves bounds that say nothing."""


@here
@pytest.mark.parametrize(
    ("rows", "d", "dtype", "state", "beta", "steps", "act"),
    FEW + [pytest.param(*case, marks=pytest.mark.slow) for case in ALL],
)
def test_values_and_gradients_are_those_of_stored_activations(
    rows: int, d: int, dtype: torch.dtype, state: str, beta: float, steps: int, act: str
) -> None:
    """Part of a tile, whole ones, and several for a program."""
    cell = make(rows, d, dtype, act=act, state=state, beta=beta, steps=steps)
    assert_within_bounds(cell, run(cell, implementation="gluon"), tf32=dtype == F32)


@pytest.mark.parametrize(
    ("rows", "d", "dtype", "state", "beta", "steps", "tol", "act"),
    [
        (133, 64, F16, "exact", 0.5, 3, 0.5, "silu"),
        (70, 64, F16, "exact", 0.75, 2, 0.6, "tanh"),
        pytest.param(70, 128, F16, "exact", 0.6, 2, 0.77, "tanh", marks=pytest.mark.slow),
    ],
)
def test_rows_halt_below_tol_and_have_the_gradients_of_their_steps(
    rows: int,
    d: int,
    dtype: torch.dtype,
    state: str,
    beta: float,
    steps: int,
    tol: float,
    act: str,
) -> None:
    cell = make(rows, d, dtype, act=act, state=state, beta=beta, steps=steps, tol=tol)
    out = LAUNCHER.forward(cell.tensors, cell.numbers)
    back = LAUNCHER.backward(
        out.ends(cell.grad_y, cell.grad_z, cell.numbers), cell.tensors, cell.numbers
    )
    assert len(out.taken.unique()) > 1
    assert_rows_halt_when_they_should(cell, out)
    assert_rows_are_those_of_fewer_steps(cell, out, back)


@pytest.mark.parametrize("state", [pytest.param("exact", marks=pytest.mark.slow), "float32"])
def test_a_row_that_halts_has_the_bits_of_a_solve_of_its_steps(state: str) -> None:
    cell = make(70, 64, F16, state=state, steps=2, tol=0.95)
    results = []
    for given in (cell, replace(cell, steps=1, tol=0.0)):
        out = LAUNCHER.forward(given.tensors, given.numbers)
        ends = out.ends(cell.grad_y, cell.grad_z, given.numbers)
        back = LAUNCHER.backward(ends, given.tensors, given.numbers)
        results.append((out.taken, out.y, out.z, back.grad_u, back.grad_z0))
    (taken, *halted), (_, *fixed) = results
    rows = taken == 1
    assert 0 < int(rows.sum()) < 70
    assert all(torch.equal(got[rows], want[rows]) for got, want in zip(halted, fixed, strict=True))


def test_a_tile_takes_no_step_that_none_of_its_rows_needs() -> None:
    """Digits that were never written are 0; with this beta each has a byte."""
    cell = make(8, 64, F16, steps=6, beta=0.95123, tol=0.6)
    out = LAUNCHER.forward(cell.tensors, cell.numbers)
    most = int(out.taken.max())
    assert most < 6
    written = out.digits.flatten(1).any(1).tolist()
    assert written == [True] * 2 * most + [False] * 2 * (6 - most)


# ---- the way back ----------------------------------------------------------------------------


def both_ways(cell: Cell, **changed: Tensor) -> Gradients:
    """The gradients, the distance and the count of lost rows; with other arguments on the way."""
    out = LAUNCHER.forward(cell.tensors, cell.numbers)
    ends = out.ends(cell.grad_y, cell.grad_z, cell.numbers)
    return LAUNCHER.backward(ends, cell.tensors._replace(**changed), cell.numbers)


@pytest.mark.parametrize(
    ("beta", "d", "dtype"),
    [
        (0.5, 64, BF16),
        (0.8, 64, BF16),
        (0.7312, 64, BF16),
        (0.7312, 128, F32),
        pytest.param(1.3, 64, BF16, marks=pytest.mark.slow),
    ],
)
def test_an_exact_state_comes_back_bit_for_bit(beta: float, d: int, dtype: torch.dtype) -> None:
    """Through every form of an exact step, and more half steps than a byte has digits."""
    cell = make(70 if dtype != F32 else 20, d, dtype, beta=beta, steps=5)
    *_, distance, lost = both_ways(cell)
    assert distance.item() == lost.item() == 0


@pytest.mark.parametrize("state", ["exact", "float32"])
def test_lost_rows_have_no_gradients(state: str) -> None:
    """One row of the second tile; with it all of the gradient of W, which is their sum."""
    cell = make(2 * TILE, 64, F16, state=state, steps=1)
    z0 = cell.z0.clone()
    z0[TILE + 3, 7] += 1.0
    grad_u, grad_w, grad_z0, distance, lost = both_ways(cell, z0=z0)
    assert lost.item() == 1 and 0.5 < distance.item() < 1.5
    assert bool(grad_w.isnan().all())
    for grad in (grad_u, grad_z0):
        rows = grad.isnan().all(1)
        assert rows.nonzero().flatten().tolist() == [TILE + 3]
        assert bool(grad[~rows].isfinite().all())


def test_a_number_out_of_range_raises_the_flag() -> None:
    cell = make(8, 64, F16, act="relu", steps=2)
    u = cell.u.clone()
    u[3, 5] = 3e4
    out = LAUNCHER.forward(cell.tensors._replace(u=u), cell.numbers)
    assert out.flag.item() != 0 and bool(out.y[3].isnan().any()) and bool(out.z[3].isnan().any())
    assert LAUNCHER.forward(cell.tensors, cell.numbers).flag.item() == 0


def test_rows_that_are_not_finite_are_nan_in_float32_and_no_others() -> None:
    """NaN with all bits set, as GPUs make it, too: it must not become a number by a rounding."""
    cell = make(5, 128, F32, state="float32", steps=1)
    all_bits = torch.tensor([2**31 - 1], dtype=torch.int32).view(F32)
    cell.z0[0, 7], cell.z0[1, 7], cell.z0[2, 7:8] = float("inf"), float("nan"), all_bits
    out = LAUNCHER.forward(cell.tensors, cell.numbers)
    for got in (out.y, out.z):
        assert got.isnan().all(1).tolist() == got.isnan().any(1).tolist() == [1, 1, 1, 0, 0]


@here
def test_a_row_does_not_depend_on_the_tiles_of_a_program() -> None:
    cell = make(3 * TILE + 1, 64, BF16, steps=2)
    all_rows, few = (run(c, implementation="gluon") for c in (cell, of_rows(cell, slice(TILE))))
    for name in ("y", "z", "grad_u", "grad_z0"):
        assert torch.equal(getattr(few, name), getattr(all_rows, name)[:TILE]), name


# ---- as torch and the layer call it ----------------------------------------------------------


@here
@pytest.mark.slow
@pytest.mark.parametrize("state", ["exact", "float32"])
def test_opcheck(state: str) -> None:
    cell = make(5, 64, BF16, state=state, steps=1)
    leaves = [t.clone().requires_grad_() for t in cell.tensors]
    op = torch.ops.revdeq_gluon.linear_cell_forward.default
    torch.library.opcheck(op, (*leaves, *cell.numbers))
    out = Solved(*op(*(t.detach() for t in leaves), *cell.numbers))
    ends = out.ends(cell.grad_y, cell.grad_z, cell.numbers)
    given = (t.clone() for t in ends)
    back = torch.ops.revdeq_gluon.linear_cell_backward.default
    torch.library.opcheck(back, (*given, *cell.tensors, *cell.numbers))


@here
def test_a_layer_takes_it_by_name() -> None:
    layer = RevDEQ(LinearCell(8, 64, dtype=BF16), max_steps=1, implementation="gluon")
    layer(torch.randn(6, 8, dtype=BF16)).float().sum().backward()
    assert layer.stats is not None and layer.stats.route == "gluon: it was named"


@here
def test_the_trial_accepts_the_kernel_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, case = torch.device("cpu"), (F16, 64, "tanh", "float32", True)
    assert LAUNCHER.differs(cpu, *case) == ""
    back = LAUNCHER.backward

    def a_little_off(*args: Any) -> Any:
        out = back(*args)
        return out._replace(grad_w=out.grad_w * 1.04)

    monkeypatch.setattr(LAUNCHER, "backward", a_little_off)
    assert "results are 0.04 off" in LAUNCHER.differs(cpu, *case)


# ---- when it runs ----------------------------------------------------------------------------

UNSUITED = [
    (
        32,
        BF16,
        "it takes features of 64, 128 in torch.bfloat16; .*; 64, 128 in torch.float32, got 32 ",
    ),
    (32, F32, "got 32 in torch.float32; take 'composite'"),
    (256, BF16, "got 256 in torch.bfloat16; take 'composite'"),
    (64, BF16, "Triton's interpreter knows no Gluon; it takes tensors on a GPU of sm_90"),
    (128, F32, "Triton's interpreter knows no Gluon; .* on a GPU of sm_80, sm_90, sm_100"),
]


@pytest.mark.parametrize(("d", "dtype", "message"), UNSUITED)
def test_where_it_cannot_run_it_says_what_it_takes(
    d: int, dtype: torch.dtype, message: str
) -> None:
    cell = make(6, d, dtype)
    by_name = f"^linear_cell_forward: implementation 'gluon' cannot run: .*{message}"
    with pytest.raises(ValueError, match=by_name):
        run(cell, implementation="gluon")
    with pytest.raises(ValueError, match=by_name):
        torch.ops.revdeq_gluon.linear_cell_forward(*cell.tensors, *cell.numbers)
    layer = RevDEQ(LinearCell(8, d, dtype=dtype), implementation="gluon")
    with pytest.raises(ValueError, match="implementation: 'gluon' cannot take this solve: "):
        layer(torch.randn(6, 8, dtype=dtype))


@pytest.mark.parametrize(
    ("architecture", "dtype", "taken"),
    [
        ("sm_90", BF16, True),
        ("sm_100", BF16, False),
        ("sm_80", F32, False),
        ("sm_100", F32, True),
        ("sm_120", F32, False),
    ],
)
def test_it_runs_on_hopper_alone_but_for_float32(
    architecture: str, dtype: torch.dtype, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_use, "architecture", lambda device: architecture)
    monkeypatch.setattr(backends, "why_not", lambda name, device: None)
    w: Any = SimpleNamespace(shape=(128, 128), dtype=dtype, device=torch.device("cuda", 0))
    reason = cell_choice.why_not("gluon", w)
    assert (reason is None) == taken
    if reason is not None:
        gpus = (
            "sm_80 up to 64 features, sm_90 up to 128 features, sm_100" if dtype == F32 else "sm_90"
        )
        assert f"it takes GPUs of {gpus} up to 128 features" in reason
    assert cell_choice.choose(None, w) == "composite"
