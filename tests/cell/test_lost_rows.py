"""NaN and infinity in the equilibrium cell: which rows are lost, and which results are NaN."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from tests.cell.conftest import HERE, each, every
from tests.cell.linear_cells import Cell, acts_of, both_ways, make, small

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
FEATURES = {"composite": 32, "cpu": 33, "triton": 32, "gluon": 64}
NAN, INF = float("nan"), float("inf")

PLACES = [
    *(("u", bad) for bad in (NAN, INF, -INF, "almost")),
    *(("z0", bad) for bad in (NAN, INF, -INF, 1e38, -7e4)),
    *((name, bad) for name in ("grad_y", "grad_z") for bad in (NAN, INF, -INF)),
]
"""An argument, and what one of its elements is in a row of its own. Of fp16 -7e4 is infinite, for
an exact state it is out of range; "almost" overflows a step later."""

CASES = [
    (implementation, *case)
    for implementation in HERE
    for case in product(acts_of(implementation), ("exact", "float32"), (0.0, 0.2), (F32, BF16, F16))
]


def with_bad_rows(cell: Cell) -> Cell:
    """The cell; after its first row, one for each of PLACES."""
    arguments = {name: getattr(cell, name).clone() for name in ("u", "z0", "grad_y", "grad_z")}
    almost = torch.finfo(cell.u.dtype).max * 0.9
    for row, (name, bad) in enumerate(PLACES, 1):
        arguments[name][row, 5] = almost if bad == "almost" else bad
    w = cell.w.clone()
    w[5, 5] = 1.0  # f of "almost", which is as large, then adds to it
    return replace(cell, w=w, **arguments)


def where(rows: Tensor, one: Cell, other: Cell) -> Cell:
    """The rows of one cell, and beside them those of the other."""
    names = ("u", "z0", "grad_y", "grad_z")
    mask = rows[:, None]
    parts = {n: torch.where(mask, getattr(one, n), getattr(other, n)) for n in names}
    return replace(other, **parts)


def finite(*tensors: Tensor) -> Tensor:
    """The rows that are, in all tensors."""
    return torch.stack([t.isfinite().all(1) for t in tensors]).all(0)


def same(got: Tensor, want: Tensor) -> bool:
    """Whether they have the same numbers and NaN at the same places."""
    return bool(((got == want) | (got.isnan() & want.isnan())).all())


@pytest.mark.parametrize(
    ("implementation", "act", "state", "tol", "dtype"), CASES, indirect=["implementation"]
)
def test_rows_whose_ends_are_not_finite_are_lost_and_no_others(
    implementation: str, act: str, state: str, tol: float, dtype: torch.dtype
) -> None:
    numbers = {"act": act, "state": state, "tol": tol, "steps": 2, "frac_bits": 14}
    plain = make(len(PLACES) + 2, FEATURES[implementation], dtype, **numbers)
    cell = with_bad_rows(plain)
    out, back = both_ways(cell, implementation)
    lost = ~finite(out.y, out.z)
    assert bool(lost[1]) and (
        not bool(lost[0]) or (implementation, state) == ("composite", "exact")
    )
    assert back.lost.item() == lost.sum() and back.distance.item() == INF
    assert (out.flag.item() != 0) == (state == "exact")
    for grad in (back.grad_u[lost], back.grad_z0[lost], back.grad_w):
        assert bool(grad.isnan().all())

    others, back_of_others = both_ways(where(lost, plain, cell), implementation)
    assert others.flag.item() == back_of_others.lost.item() == 0
    assert back_of_others.distance.isfinite()
    assert same(back.grad_u[~lost], back_of_others.grad_u[~lost])
    assert same(back.grad_z0[~lost], back_of_others.grad_z0[~lost])

    of_composite, _ = both_ways(cell, "composite")
    assert state == "exact" or torch.equal(lost, ~finite(of_composite.y, of_composite.z))
    assert torch.equal(out.taken, of_composite.taken)
    _, want = both_ways(where(lost, plain, cell), "composite")
    for name in ("grad_u", "grad_z0"):
        got, wanted = getattr(back_of_others, name).isfinite(), getattr(want, name).isfinite()
        if act == "gelu_tanh":  # torch's slope is NaN where the cube of x is infinite
            assert bool((got | ~wanted).all()), name
        else:
            assert torch.equal(got, wanted), name


@every
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("state", ["exact", "float32"])
@pytest.mark.parametrize("act", ["tanh", "relu"])
def test_w_that_is_not_finite_loses_the_rows_that_it_reaches(
    act: str, state: str, bad: float, implementation: str
) -> None:
    """But tanh of infinity is 1: no row is lost then, the product with W alone is NaN."""
    cell = small(implementation, 6, act=act, state=state, steps=2, frac_bits=14)
    cell.w[3, 5] = bad
    cell.z0[:, 5] = torch.tensor([1.0, 1.0, -1.0, 2.0, -2.0, 1.0])
    out, back = both_ways(cell, implementation)
    lost = ~finite(out.y, out.z)
    assert (out.flag.item() != 0) == (state == "exact" and bool(lost.any()))
    assert back.lost.item() == lost.sum() and bool(back.grad_z0.isnan().any(1).all())
    assert back.distance.item() == INF if lost.any() else back.distance.item() < 1e-5
    assert bool(lost.all()) if bad != INF else bool(lost.any()) == (act == "relu")


@pytest.mark.parametrize(
    ("implementation", "act"),
    [(implementation, act) for implementation in HERE for act in acts_of(implementation)],
    indirect=["implementation"],
)
def test_nan_that_came_after_the_forward_pass_is_not_0(implementation: str, act: str) -> None:
    """In fixed point it is, and where relu gave 0 an exact state is reconstructed."""
    cell = small(implementation, 4, act=act, steps=2)
    u = cell.u.clone()
    u[2, 7] = -20.0  # f is 0, or next to it
    cell, changed = replace(cell, u=u), u.clone()
    changed[2, 7] = NAN
    _, back = both_ways(cell, implementation, u=changed)
    assert back.lost.item() <= 1 and bool(back.grad_u[2].isnan().any())
    assert bool(back.grad_z0[2].isnan().any()) and bool(back.grad_w.isnan().any())
    others = torch.tensor([0, 1, 3])
    assert bool(finite(back.grad_u, back.grad_z0)[others].all())


@each(
    "dtype d",
    composite=[(F32, 32), (BF16, 32)],
    cpu=[(F32, 32), (BF16, 32)],
    triton=[(F32, 32), (BF16, 32)],
    gluon=[(F32, 64), (BF16, 64)],
)
@pytest.mark.parametrize(("scale", "halts"), [(1e17, True), (1e19, False), (1e24, False)])
def test_a_row_whose_squares_overflow_does_not_halt(
    scale: float, halts: bool, implementation: str, dtype: torch.dtype, d: int
) -> None:
    """Where norm(f) alone is beyond their range, a residual of 0 would halt it."""
    cell = make(8, d, dtype, act="relu", state="float32", steps=6, tol=0.3)
    u, z0 = cell.u.clone(), cell.z0.clone()
    u[2:4], z0[2:4] = u[2:4] * scale, z0[2:4] * scale
    out, back = both_ways(replace(cell, u=u, z0=z0), implementation)
    plain, _ = both_ways(cell, implementation)
    assert bool((plain.taken < 6).all()) and back.lost.item() == 0
    halted = out.taken < 6
    assert halted.tolist() == [True, True, halts, halts, *4 * [True]]
    if not halts:
        assert not bool((out.residual[2:4] < cell.tol).any())
    assert torch.equal(out.taken[halted], plain.taken[halted])


@pytest.mark.parametrize("implementation", [name for name in HERE if name in ("composite", "cpu")])
@pytest.mark.parametrize("tol", [0.0, 0.5])
@pytest.mark.parametrize("state", ["exact", "float32"])
def test_a_state_that_is_infinite_in_float16_alone_is_not_lost(
    state: str, tol: float, implementation: str
) -> None:
    """With tanh and positive weights f is 1 there; infinity times W's padding has no part in it."""
    cell = make(8, FEATURES[implementation], F16, frac_bits=10, state=state, tol=tol)
    cell.z0[1, 2] = 1e5
    out, back = both_ways(replace(cell, w=cell.w.abs() + 1e-3), implementation)
    assert out.flag.item() == 0 and bool(torch.stack([out.y, out.z]).isfinite().all())
    assert bool(out.residual.isfinite().all())
    assert state != "exact" or back.lost.item() == 0
