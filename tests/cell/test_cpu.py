"""The equilibrium cell in C++ returns the same bits for any division of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from revdeq_kernels.ops.cell.linear_cell import run_backward, run_forward
from tests.cell.linear_cells import ACTS, Cell, both_ways, make, of_rows
from tests.conftest import BACKENDS

if "cpu" not in BACKENDS:
    pytest.skip("the extension is not built", allow_module_level=True)

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

BY_ROW = ("y", "z", "taken", "residual", "grad_u", "grad_z0")
"""What belongs to a row."""

CELLS = [
    (300, 65, F32, {"act": "tanh", "beta": 0.5}),
    (300, 33, BF16, {"act": "gelu", "beta": 0.8}),
    (300, 40, F16, {"act": "silu", "beta": 0.7312}),
    (300, 32, F32, {"act": "gelu_tanh", "beta": 1.5, "frac_bits": 16}),
    (300, 17, F32, {"act": "relu", "beta": 0.9, "state": "float32", "steps": 1}),
    (300, 31, F32, {"act": "tanh", "beta": 0.75, "tol": 0.2}),
    (300, 100, BF16, {"act": "relu", "beta": 0.5, "tol": 0.2, "steps": 7}),
    (300, 128, F16, {"act": "relu", "beta": 0.5, "state": "float32", "tol": 0.6, "steps": 2}),
]
cells = pytest.mark.parametrize(("rows", "d", "dtype", "numbers"), CELLS)


def results(cell: Cell) -> dict[str, Tensor]:
    """All that both ops return, by name."""
    out, back = both_ways(cell, "cpu")
    return out._asdict() | back._asdict()


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert [name for name in want if not torch.equal(got[name], want[name])] == []


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@cells
def test_any_number_of_threads_gives_the_same_bits(
    rows: int, d: int, dtype: torch.dtype, numbers: dict[str, Any]
) -> None:
    """The gradient of W too: its parts are added up in an order of their own."""
    cell = make(rows, d, dtype, **numbers)
    with threads(1):
        want = results(cell)
    for count in (2, 3, 7):
        with threads(count):
            assert_same(results(cell), want)


@cells
@pytest.mark.parametrize("cut", [1, 5, 6, 16, 33, 96, 100, 299])
def test_a_row_has_the_same_bits_in_any_company(
    cut: int, rows: int, d: int, dtype: torch.dtype, numbers: dict[str, Any]
) -> None:
    cell = make(rows, d, dtype, **numbers)
    together = results(cell)
    parts = [results(of_rows(cell, rows)) for rows in (slice(cut), slice(cut, None))]
    for name in BY_ROW:
        assert torch.equal(torch.cat([part[name] for part in parts]), together[name]), name


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("halted", [(0,), (1,), (0, 2), (1, 2, 3)])
def test_blocks_of_rows_that_have_halted(halted: tuple[int, ...], dtype: torch.dtype) -> None:
    """Their products are left out, and only theirs: rows have the bits that they have alone."""
    cell = make(64, 33, dtype, steps=6, tol=1e-3)
    for block in halted:  # at the fixed point of tanh, which is zero there
        cell.u[16 * block : 16 * block + 16] = cell.z0[16 * block : 16 * block + 16] = 0.0
    together = results(cell)
    early = together["taken"] == 1
    assert {row // 16 for row in early.nonzero().flatten().tolist()} == set(halted)
    assert early.sum() == 16 * len(halted)
    for rows in (early, ~early):
        alone = results(of_rows(cell, rows))
        for name in BY_ROW:
            assert torch.equal(alone[name], together[name][rows]), name


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("case", ["subnormal gradients", "an infinite W"])
def test_a_row_that_has_halted_beside_others_that_move(case: str, dtype: torch.dtype) -> None:
    """The product of their block does not change its gradient."""
    if case == "an infinite W":
        cell = make(16, 33, dtype, steps=12, tol=0.5, beta=0.9)
        cell.w[3, 5] = float("inf")
    else:
        cell = make(16, 33, dtype, steps=8, tol=0.1)
        cell.grad_y.mul_(1e-37)
        cell.grad_z.mul_(1e-37)
    together = results(cell)
    taken = together["taken"]
    early = taken == taken.min()
    assert taken.min() < taken.max()
    alone = results(of_rows(cell, early))
    for name in BY_ROW:
        got, want = (t.nan_to_num(nan=7.0) for t in (together[name][early], alone[name]))
        assert torch.equal(got, want), name


@pytest.mark.parametrize("d", [480, 511, 512])
def test_many_features_in_bfloat16_are_near_the_composite(d: int) -> None:
    """The error analysis of test_implementations.py says nothing of as many."""
    cell = make(70, d, BF16, steps=3, beta=0.5)
    got, want = both_ways(cell, "cpu"), both_ways(cell, "composite")
    for name in ("y", "z"):
        torch.testing.assert_close(getattr(got[0], name), getattr(want[0], name), rtol=0, atol=1e-3)
    for name in ("grad_u", "grad_w", "grad_z0"):
        mine, theirs = (getattr(back, name).float() for _, back in (got, want))
        assert (mine - theirs).norm() < 2e-3 * theirs.norm(), name


# ---- a start of zeros, whose product with W is left out ---------------------------------------


@cells
def test_a_start_of_zeros_has_the_bits_that_it_has_beside_another(
    rows: int, d: int, dtype: torch.dtype, numbers: dict[str, Any]
) -> None:
    """A tile takes the product if any of its rows needs it."""
    cell = make(rows, d, dtype, **numbers)
    cell.z0[::2] = 0.0
    zeros = torch.arange(rows) % 2 == 0
    together, alone = results(cell), results(of_rows(cell, zeros))
    for name in BY_ROW:
        want = together[name]
        assert torch.equal(alone[name], want if want.numel() == 0 else want[zeros]), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("state", ["exact", "float32"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_start_of_zeros_hides_nothing(dtype: torch.dtype, state: str, bad: float) -> None:
    """What W or a gradient holds that is not finite shows where the composite shows it."""
    for place in ("w", "grad_y", "grad_z"):
        cell = make(30, 40, dtype, state=state, steps=1)
        cell.z0.zero_()
        getattr(cell, place)[3, 5] = bad
        want, got = both_ways(cell, "composite"), both_ways(cell, "cpu")
        if place == "w":  # an exact state is lost everywhere in the composite
            assert torch.equal(got[0].y.isnan().any(1), want[0].y.isnan().any(1))
            assert bool(got[1].lost) == bool(want[1].lost) is True
            assert got[1].grad_w.isnan().all()
        else:
            for name in ("grad_u", "grad_w", "grad_z0"):
                mine, theirs = getattr(got[1], name), getattr(want[1], name)
                assert torch.equal(mine.isfinite(), theirs.isfinite()), name


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("d", [16, 33, 63])
def test_a_number_that_is_not_finite_stays_where_it_belongs(d: int, dtype: torch.dtype) -> None:
    """In the last feature of a row: its product with W's padding, by zero, counts for nothing."""
    cell = make(20, d, dtype, state="float32", steps=3, beta=0.5)
    bad = replace(cell, z0=cell.z0.clone(), grad_y=cell.grad_y.clone())
    bad.z0[3, -1], bad.grad_y[11, -1] = float("inf"), float("-inf")
    clean, got, want = results(cell), results(bad), both_ways(bad, "composite")
    for name in ("y", "z"):
        finite = got[name].isfinite()
        assert torch.equal(finite, getattr(want[0], name).isfinite())
        assert finite.logical_not().nonzero().tolist() == [[3, d - 1]]
    others = (torch.arange(20) != 3) & (torch.arange(20) != 11)
    for name in ("y", "z", "grad_u", "grad_z0"):
        assert torch.equal(got[name][others], clean[name][others]), name
    for name in ("grad_u", "grad_z0"):
        assert torch.equal(got[name].isfinite(), getattr(want[1], name).isfinite()), name


@cells
def test_the_gradient_of_a_start_can_be_left_out(
    rows: int, d: int, dtype: torch.dtype, numbers: dict[str, Any]
) -> None:
    cell = make(rows, d, dtype, **numbers)
    out, want = both_ways(cell, "cpu")
    ends = out.ends(cell.grad_y, cell.grad_z, cell.numbers)
    got = run_backward("cpu", ends, cell.tensors, cell.numbers, wants_z0=False)
    assert got.grad_z0.numel() == 0
    assert_same(got._replace(grad_z0=want.grad_z0)._asdict(), want._asdict())


@cells
def test_what_only_a_backward_pass_reads_can_be_left_out(
    rows: int, d: int, dtype: torch.dtype, numbers: dict[str, Any]
) -> None:
    cell = make(rows, d, dtype, **numbers)
    want, _ = both_ways(cell, "cpu")
    got = run_forward("cpu", cell.tensors, cell.numbers, keeps=False)
    assert got.fixed.numel() == got.digits.numel() == 0
    assert_same(got._replace(fixed=want.fixed, digits=want.digits)._asdict(), want._asdict())


# ---- memory and layouts ------------------------------------------------------------------------


@cells
def test_it_reads_no_memory_that_it_did_not_write(
    rows: int, d: int, dtype: torch.dtype, numbers: dict[str, Any]
) -> None:
    """torch then fills what it allocates with NaN and the largest integers."""
    cell = make(rows, d, dtype, **numbers)
    want = results(cell)
    torch.use_deterministic_algorithms(True)
    try:
        assert_same(results(cell), want)
    finally:
        torch.use_deterministic_algorithms(False)


def offset(t: Tensor) -> Tensor:
    """The same, an element away from where torch allocates."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.t().contiguous().t(),
    "expanded": lambda t: t[:1].expand_as(t),
    "with gaps": lambda t: torch.stack([t, t], -1)[..., 0],
    "unaligned": offset,
}


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arguments_of_any_layout(layout: str, dtype: torch.dtype) -> None:
    cell = make(13, 33, dtype, steps=2)
    tensors = {name: t for name, t in vars(cell).items() if torch.is_tensor(t)}
    laid_out = {name: LAYOUTS[layout](t) for name, t in tensors.items()}
    plain = {name: t.clone(memory_format=torch.contiguous_format) for name, t in laid_out.items()}
    assert_same(results(replace(cell, **laid_out)), results(replace(cell, **plain)))


@pytest.mark.parametrize("beta", [0.5, 0.75, 2 / 3, 0.7312, 0.9, 1.5])
@pytest.mark.parametrize("act", ACTS)
def test_it_comes_back_from_any_depth(act: str, beta: float) -> None:
    """Bit for bit, in all dtypes; where beta allows it with an f that does not contract."""
    for steps, dtype in ((1, F32), (2, BF16), (64, F16), (500, F32)):
        cell = make(7, 18, dtype, act=act, beta=beta, steps=steps, frac_bits=16)
        cell = replace(cell, w=cell.w * (2.0 if beta < 1 else 0.25))
        found = results(cell)
        assert found["flag"].item() == found["lost"].item() == found["distance"].item() == 0
        assert found["digits"].shape[0] == 2 * steps


@pytest.mark.parametrize("state", ["exact", "float32"])
@pytest.mark.parametrize("act", ACTS)
def test_gradients_that_arrive_as_zeros_leave_zeros(state: str, act: str) -> None:
    cell = make(9, 20, F32, state=state, act=act, steps=2)
    zeros = torch.zeros_like(cell.z0)
    found = results(replace(cell, grad_y=zeros, grad_z=zeros))
    for name in ("grad_u", "grad_w", "grad_z0"):
        assert not bool(found[name].any()), name


def test_arguments_stay_as_they_are() -> None:
    cell = make(100, 33, F32, steps=3)
    tensors = {name: t for name, t in vars(cell).items() if torch.is_tensor(t)}
    before = {name: t.clone() for name, t in tensors.items()}
    results(cell)
    assert_same(tensors, before)
