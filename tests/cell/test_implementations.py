"""Requirements on every implementation of the equilibrium cell: accuracy and exact reversal.

The composite, C++ for CPUs, and the Triton and Gluon kernels, both in Triton's interpreter. Rows
that halt are tested in test_halting.py, and requirements specific to C++ in test_cpu.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import revdeq_kernels as rk
from revdeq_kernels.ops.cell import choice
from revdeq_kernels.ops.cell.arguments import Solved
from tests.cell.conftest import Slow, each, every
from tests.cell.linear_cells import ACTS, acts_of, both_ways, make, of_rows, run, small
from tests.cell.tolerances import assert_within_bounds, sums_of
from tests.conftest import BETAS

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

# ---- against the definition in real numbers --------------------------------------------------


def precisions(implementation: str) -> list[tuple[Any, ...]]:
    """Every activation, format and dtype, in so few steps that the bounds stay below the values."""
    return [
        (37, 32, dtype, state, beta, steps, act)
        for act in acts_of(implementation)
        for dtype, state, beta, steps in (
            (F32, "exact", 0.5, 4),
            (F32, "exact", 0.8, 3),
            (F32, "exact", 1.3, 2),
            (F32, "float32", 0.5, 3),
            (F16, "exact", 0.5, 3),
            (F16, "exact", 0.75, 2),
            (F16, "float32", 0.5, 1),
            (BF16, "exact", 0.5, 2),
            (BF16, "exact", 0.6, 2),
            (BF16, "float32", 0.5, 1),
        )
    ]


SHAPES = [
    (rows, d, F32, "exact", 0.5, 2, "tanh") for rows, d in ((1, 1), (3, 7), (70, 33), (5, 64))
]

FEATURES = [
    (rows, d, dtype, state, beta, 1, act)
    for k, d in enumerate((1, 2, 3, 31, 32, 33, 48, 65, 100, 200, 511, 512))
    for rows, dtype, state, beta, act in (
        (5, F32, "exact", 0.5, list(ACTS)[k % 5]),
        (97, F16, "exact", 0.75, list(ACTS)[(k + 1) % 5]),
        (6, BF16, "exact", 0.5, list(ACTS)[(k + 3) % 5]),
        (7, F32, "float32", 0.6, list(ACTS)[(k + 2) % 5]),
    )
    if dtype != BF16 or d < 500
]
ROWS = [
    (rows, 40, dtype, "exact", 0.5, steps, "gelu")
    for rows in (1, 5, 6, 7, 95, 96, 97, 1000)
    for dtype, steps in ((F32, 2), (F16, 2), (BF16, 1))
    if dtype != BF16 or rows < 1000
]
"""Part of a tile of rows and of columns, whole ones, and several for a thread.

In bfloat16 as large as the bounds still say something.
"""

TILES = [
    (rows, d, dtype, "exact", 0.5, 1, "tanh")
    for rows in (1, 64, 101)
    for dtype, d in ((F32, 32), (F32, 64), (BF16, 32), (BF16, 64), (F16, 64), (F16, 128))
]
"""Part of a tile, whole ones, and several for a program."""

GLUON = [
    (101, 64, BF16, "exact", 0.5, 1, "tanh"),
    (165, 64, F16, "exact", 0.75, 2, "gelu"),
    (5, 128, F16, "exact", 1.3, 1, "silu"),
    (37, 64, F16, "float32", 0.5, 1, "relu"),
    (37, 128, F32, "exact", 0.5, 2, "tanh"),
    (21, 64, F32, "float32", 0.6, 1, "silu"),
    *(
        Slow((rows, d, dtype, state, beta, 1, act))
        for act in acts_of("gluon")
        for rows, d, dtype in ((64, 64, BF16), (101, 64, F16), (101, 128, F16), (37, 128, F32))
        for state, beta in (("exact", 0.5), ("exact", 0.6), ("float32", 0.5))
        if dtype != BF16 or state == "exact"
    ),
]
"""With many features in bfloat16 a float32 state leaves bounds that say nothing."""


@each(
    "rows d dtype state beta steps act",
    composite=precisions("composite") + SHAPES,
    cpu=precisions("cpu") + SHAPES + FEATURES + ROWS,
    triton=precisions("triton") + TILES,
    gluon=GLUON,
)
def test_values_and_gradients_are_those_of_stored_activations(
    implementation: str,
    rows: int,
    d: int,
    dtype: torch.dtype,
    state: str,
    beta: float,
    steps: int,
    act: str,
) -> None:
    cell = make(rows, d, dtype, act=act, state=state, beta=beta, steps=steps)
    got = run(cell, implementation=implementation)
    assert_within_bounds(cell, got, sums_of(implementation, dtype))


def tile_of(implementation: str) -> int:
    """Rows of a tile of ``small``; the composite has none, and of C++ it is a multiple."""
    if implementation in ("composite", "cpu"):
        return {"composite": 32, "cpu": 192}[implementation]
    return choice.launcher(implementation).configuration(small(implementation, 0).w).tile


@each(cpu=[()], triton=[()], gluon=[()])
def test_a_row_does_not_depend_on_the_tiles_of_a_program(implementation: str) -> None:
    """Four tiles for two programs."""
    tile = tile_of(implementation)
    cell = small(implementation, 3 * tile + 1, steps=2)
    few, all_rows = (
        run(c, implementation=implementation) for c in (of_rows(cell, slice(tile)), cell)
    )
    for name in ("y", "z", "grad_u", "grad_z0"):
        assert torch.equal(getattr(few, name), getattr(all_rows, name)[:tile]), name


@every
@pytest.mark.parametrize("tol", [0.0, 0.1])
def test_no_rows(tol: float, implementation: str) -> None:
    cell = small(implementation, 0, tol=tol)
    out, back = both_ways(cell, implementation)
    assert out.y.shape == back.grad_z0.shape == cell.z0.shape
    assert out.taken.shape == out.residual.shape == (0,)
    assert torch.equal(back.grad_w, torch.zeros_like(back.grad_w))


@every
def test_arguments_of_any_strides(implementation: str) -> None:
    cell = small(implementation, 12, steps=2)
    tensors = {name: t for name, t in vars(cell).items() if torch.is_tensor(t)}
    other = replace(cell, **{name: t.t().contiguous().t() for name, t in tensors.items()})
    assert not other.u.is_contiguous()
    assert all(map(torch.equal, *(run(c, implementation=implementation) for c in (cell, other))))


# ---- the way back ----------------------------------------------------------------------------

DTYPES = (BF16, F16, F32)


@each(
    "rows d dtype beta depths",
    composite=[(40, 32, dtype, beta, (1, 2, 9, 40)) for dtype in DTYPES for beta in BETAS],
    cpu=[(103, 33, dtype, beta, (1, 2, 9, 64, 5)) for dtype in DTYPES for beta in BETAS],
    # Every form, base and sign with one dtype: the interpreter is slow.
    triton=[(20, 32, DTYPES[k % 3], beta, (1, 2, 3, 5)) for k, beta in enumerate(BETAS)],
    gluon=[
        (70, 64, BF16, 0.5, (5,)),
        (70, 64, BF16, 0.8, (5,)),
        (70, 64, BF16, 0.7312, (5,)),
        (20, 128, F32, 0.7312, (5,)),
        Slow((70, 64, BF16, 1.3, (5,))),
    ],
)
def test_an_exact_cell_comes_back_bit_for_bit_from_any_depth(
    implementation: str, rows: int, d: int, dtype: torch.dtype, beta: float, depths: tuple[int, ...]
) -> None:
    """Through every form of an exact step, and more half steps than a byte has digits."""
    for act, steps in zip(ACTS, depths, strict=False):
        cell = make(rows, d, dtype, beta=beta, steps=steps, act=act, frac_bits=16)
        _, (*grads, distance, lost) = both_ways(cell, implementation)
        assert distance.item() == 0.0 and lost.item() == 0
        assert all(bool(grad.isfinite().all()) for grad in grads)


@each(cpu=[()], triton=[()], gluon=[()])
def test_rows_beyond_the_end_of_a_tile_leave_no_trace(implementation: str) -> None:
    """They have no digits, without which a state of so many steps goes back beyond float16."""
    d = small(implementation, 0).w.shape[0]
    cell = make(5, d, F16, beta=0.8, steps=20, act="relu", frac_bits=12)
    _, (*grads, _, lost) = both_ways(cell, implementation)
    _, of_composite = both_ways(cell, "composite")
    assert lost.item() == 0
    for got, want in zip(grads, of_composite, strict=False):
        assert (got.float() - want.float()).norm() <= 2.0**-10 * want.float().norm()


@every
@pytest.mark.parametrize(
    ("changed", "state", "by"),
    [
        ("w", "exact", 0.01),
        ("u", "exact", 0.01),
        ("digits", "exact", 0),
        ("z0", "exact", 0.02),
        ("z0", "float32", 0.02),
    ],
)
def test_what_changed_since_the_forward_pass_gives_nan(
    changed: str, state: str, by: float, implementation: str
) -> None:
    """To the row that changed, here in the second tile, and to the gradient of W, a sum of rows.

    Three tiles for two programs, so that one has to count the rows of two.
    """
    tile = tile_of(implementation)
    rows, row = 2 * tile + 5, tile + 3
    cell = small(implementation, rows, state=state, steps=5 if changed == "digits" else 1)
    if changed == "digits":  # two bytes of each number, or a plane for each half step
        options: Any = cell.numbers._asdict() | {"implementation": implementation}
        other = rk.linear_cell_forward(*cell.tensors, **options).digits.clone()
        other.view(len(other), -1)[1, 40] ^= 128
    else:
        other = getattr(cell, changed).clone()
        other[row if changed != "w" else 7, 3] += by
    _, (grad_u, grad_w, grad_z0, distance, lost) = both_ways(
        cell, implementation, **{changed: other}
    )
    wrong = grad_u.isnan().any(1)
    assert lost.item() == wrong.sum() == (rows if changed == "w" else 1)
    assert 0.01 < distance.item() < 0.03 if changed == "z0" else distance.item() > 0
    assert bool(wrong[row]) or changed == "digits"
    assert bool(grad_w.isnan().all())
    for grad in (grad_u, grad_z0):
        assert bool(grad[wrong].isnan().all()) and bool(grad[~wrong].isfinite().all())


@every
def test_a_float_state_past_its_precision_gives_nan(implementation: str) -> None:
    cell = small(implementation, 8, state="float32", beta=0.8, steps=24)
    _, (grad_u, grad_w, grad_z0, distance, lost) = both_ways(cell, implementation)
    assert distance.item() > 1e-3 and lost.item() == 8
    assert all(bool(grad.isnan().all()) for grad in (grad_u, grad_w, grad_z0))


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e4])
def test_a_number_out_of_range_raises_the_flag(bad: float, implementation: str) -> None:
    cell = small(implementation, 8, act="relu", steps=2)
    u = cell.u.clone()
    u[3, 5] = bad
    options: Any = cell.numbers._asdict() | {"implementation": implementation}
    out = rk.linear_cell_forward(u, cell.w, cell.z0, **options)
    assert out.flag.item() != 0
    assert bool(out.y[3].isnan().any()) and bool(out.z[3].isnan().any())
    assert rk.linear_cell_forward(*cell.tensors, **options).flag.item() == 0


@each(gluon=[()])
def test_rows_that_are_not_finite_are_nan_in_float32_and_no_others(implementation: str) -> None:
    """NaN with all bits set, as GPUs make it, too: it must not become a number by a rounding."""
    cell = make(5, 128, F32, state="float32", steps=1)
    all_bits = torch.tensor([2**31 - 1], dtype=torch.int32).view(F32)
    cell.z0[0, 7], cell.z0[1, 7], cell.z0[2, 7:8] = float("inf"), float("nan"), all_bits
    options: Any = cell.numbers._asdict() | {"implementation": implementation}
    for got in rk.linear_cell_forward(*cell.tensors, **options)[:2]:
        assert got.isnan().all(1).tolist() == got.isnan().any(1).tolist() == [1, 1, 1, 0, 0]


# ---- as torch calls it, and its first use on a device ----------------------------------------

CHECKED = [(F32, "exact", 2, 0.0), (BF16, "exact", 2, 0.0), (F32, "float32", 2, 0.0)]
CHECKED += [(F32, "exact", 3, 0.2)]


@each(
    "dtype state steps tol",
    composite=CHECKED,
    cpu=CHECKED,
    triton=CHECKED,
    gluon=[Slow((BF16, state, 1, 0.0)) for state in ("exact", "float32")],
)
def test_opcheck(
    implementation: str, dtype: torch.dtype, state: str, steps: int, tol: float
) -> None:
    d = small(implementation, 0).w.shape[0]
    cell = make(5, d, dtype, state=state, steps=steps, tol=tol)
    space = getattr(torch.ops, choice.IMPLEMENTATIONS[implementation])
    leaves = [t.clone().requires_grad_() for t in cell.tensors]
    torch.library.opcheck(space.linear_cell_forward.default, (*leaves, *cell.numbers))
    out = Solved(*space.linear_cell_forward.default(*cell.tensors, *cell.numbers))
    ends = (t.clone() for t in out.ends(cell.grad_y, cell.grad_z, cell.numbers))
    torch.library.opcheck(space.linear_cell_backward.default, (*ends, *cell.tensors, *cell.numbers))


@each(
    "dtype d act state halting",
    triton=[
        (F32, 32, "tanh", "float32", False),
        (BF16, 32, "silu", "exact", True),
        (F16, 64, "gelu", "exact", False),
    ],
    gluon=[(F16, 64, "tanh", "float32", True)],
)
def test_the_trial_accepts_the_kernel(
    implementation: str, dtype: torch.dtype, d: int, act: str, state: str, halting: bool
) -> None:
    launcher = choice.launcher(implementation)
    assert launcher.differs(torch.device("cpu"), dtype, d, act, state, halting) == ""


@each(triton=[()], gluon=[()])
def test_the_trial_accepts_no_other_kernel(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher, cell = choice.launcher(implementation), small(implementation, 0)
    back = launcher.backward

    def a_little_off(*args: Any) -> Any:
        out = back(*args)
        return out._replace(grad_w=out.grad_w * 1.04)

    def lost(*args: Any) -> Any:
        return back(*args)._replace(lost=torch.ones(1, dtype=torch.int32))

    for wrong, message in (
        (a_little_off, "results are 0.04 off"),
        (lost, "1 rows were not reconstructed"),
    ):
        monkeypatch.setattr(launcher, "backward", wrong)
        case = (cell.w.device, cell.w.dtype, len(cell.w), "tanh", "float32", False)
        assert message in launcher.differs(*case)
