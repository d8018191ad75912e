"""Arbitrary cells on the CPU kernel: close to float64; rows are reconstructed exactly, or lost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from revdeq_kernels.exact_numbers import BetaError, contraction
from tests.cell.linear_cells import ACTS, Cell, Outcome, both_ways, make, of_rows
from tests.cell.tolerances import bounded, sums_of
from tests.conftest import BACKENDS, same_bits

if "cpu" not in BACKENDS:
    pytest.skip("the extension is not built", allow_module_level=True)

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

EXAMPLES, NIGHTLY_EXAMPLES = 120, 20_000

SIZES = st.one_of(st.integers(1, 40), st.sampled_from((48, 63, 64, 65, 95, 96, 97, 127, 129, 200)))
BAD = (math.nan, math.inf, -math.inf, 1e38, -7e4, 6e4)


def is_beta(beta: float) -> bool:
    """Whether an exact state can take it."""
    try:
        contraction(beta)
    except BetaError:
        return False
    return True


BETAS = st.one_of(
    st.sampled_from((0.5, 0.75, 2 / 3, 0.9, 0.7312, 1.5, 1.25, 1 - 1 / 256)),
    st.floats(0.01, 1.99).filter(is_beta),
)


@st.composite
def cells(draw: st.DrawFn) -> Cell:
    """A contractive cell of random numbers; of some, W is larger or numbers are not finite."""
    rows, d = draw(st.one_of(st.just(0), SIZES, SIZES)), draw(SIZES)
    cell = make(
        rows,
        d,
        draw(st.sampled_from((F32, BF16, F16))),
        seed=draw(st.integers(0, 2**31)),
        beta=draw(BETAS),
        steps=draw(st.one_of(st.integers(1, 4), st.integers(1, 40))),
        act=draw(st.sampled_from(list(ACTS))),
        state=draw(st.sampled_from(("exact", "exact", "float32"))),
        frac_bits=draw(st.integers(10, 26)),  # z0 is on the grid of 10
        tol=draw(st.sampled_from((0.0, 0.0, 0.0, 1e-30, 0.1, 0.5, 3.0))),
    )
    return replace(cell, w=cell.w * draw(st.sampled_from((1.0, 1.0, 1.0, 0.0, 8.0))))


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[Cell, Cell, Tensor]:
    """A cell, the same with numbers that are not ordinary, and the rows that have any."""
    cell = draw(cells())
    rows, d = cell.z0.shape
    names = ("u", "z0", "grad_y", "grad_z")
    other = {name: getattr(cell, name).clone() for name in names}
    touched = torch.zeros(rows, dtype=torch.bool)
    for _ in range(draw(st.integers(0, 3)) if rows else 0):
        row, column = draw(st.integers(0, rows - 1)), draw(st.integers(0, d - 1))
        other[draw(st.sampled_from(names))][row, column] = draw(st.sampled_from(BAD))
        touched[row] = True
    return cell, replace(cell, **other), touched


def check(example: tuple[Cell, Cell, Tensor]) -> None:
    """Both cells, and of the second that no row saw what another has."""
    cell, other, touched = example
    check_ordinary(cell)
    out, back = both_ways(other, "cpu")
    clean, clean_back = both_ways(cell, "cpu")
    for results, of_clean in ((out, clean), (back, clean_back)):
        for name in ("y", "z", "grad_u", "grad_z0", "taken", "residual"):
            got: Any = getattr(results, name, None)
            if got is not None and got.numel() > 0:
                want = getattr(of_clean, name)
                assert same_bits(got[~touched], want[~touched]), name
    ends = torch.stack([out.y, out.z]).isfinite().all(2).all(0)
    assert bool(back.grad_u[~ends].isnan().all()) and bool(back.grad_z0[~ends].isnan().all())
    assert back.lost.item() >= int((~ends).sum())
    if cell.state == "exact":
        assert back.lost.item() == int((~ends).sum())
        assert (out.flag.item() != 0) == (back.lost.item() > 0)
        assert back.distance.item() == (math.inf if back.lost.item() else 0.0)
    if back.lost.item():
        assert bool(back.grad_w.isnan().all())


def check_ordinary(cell: Cell) -> None:
    """Numbers in range: near float64, by which rows a call has changes nothing, and no row lost."""
    out, back = both_ways(cell, "cpu")
    if cell.state == "exact":
        assert (out.flag.item() != 0) == (back.lost.item() > 0)
        lost = out.fixed.amin((0, 2)) == -(2**31) if out.fixed.numel() else out.flag.new_zeros(0)
        assert back.lost.item() == int((lost != 0).sum())
    half = of_rows(cell, slice(len(cell.z0) // 2, None))
    part, part_back = both_ways(half, "cpu")
    for all_rows, some in ((out[:2], part[:2]), (back[:3:2], part_back[:3:2])):
        for got, want in zip(some, all_rows, strict=True):
            assert same_bits(got, want[len(cell.z0) // 2 :])
    if back.lost.item() == 0 and len(cell.z0) and not cell.tol and cell.steps <= 4:
        assert_near(cell, Outcome(out.y, out.z, *back[:3]))


def assert_near(cell: Cell, got: Outcome) -> None:
    """Within the bounds of the running error analysis, also where they say little."""
    values, errors = bounded(cell, sums_of("cpu", cell.w.dtype))
    for name, value, error, result in zip(Outcome._fields, values, errors, got, strict=True):
        off = (result.double() - value).abs()
        assert bool(((off <= error) | ~error.isfinite()).all()), name


def fuzz(how: settings, examples: int) -> None:
    settings(how, max_examples=examples, deadline=None)(given(spoiled())(check))()


def test_arbitrary_cells() -> None:
    fuzz(settings(derandomize=True, database=None), EXAMPLES)


@pytest.mark.nightly
def test_more_arbitrary_cells() -> None:
    fuzz(settings(print_blob=True), NIGHTLY_EXAMPLES)
