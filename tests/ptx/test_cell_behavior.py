"""The tests of tests/cell on compiled kernels: lost rows, NaN, and rows that halt.

There, the kernels run in Triton's interpreter. These tests show how a compiler handles NaN in
comparisons and maxima, and rows beyond the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, product
from typing import Any

import pytest
import torch

from revdeq_kernels.ops.cell.choice import GPU_ACTS
from tests.ptx import cells

Call = Callable[..., Any]
Row = tuple[int, str, dict[str, Any]]
"""Architecture, test, and its arguments."""

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
NAN, INF = float("nan"), float("inf")

COMPILED = [(80, "triton"), (90, "triton"), (90, "gluon"), (100, "triton")]

LOST = "test_lost_rows.test_rows_whose_ends_are_not_finite_are_lost_and_no_others"
CHANGED = "test_implementations.test_what_changed_since_the_forward_pass_gives_nan"


def lost_rows() -> Iterator[Row]:
    """NaN and infinity in every argument."""
    for sm, implementation in COMPILED:
        names = ("act", "state", "tol")
        dtypes = cycle((F32, BF16, F16))
        for case in product(GPU_ACTS, ("exact", "float32"), (0.0, 0.2)):
            arguments = dict(zip(names, case, strict=True)) | {"dtype": next(dtypes)}
            yield sm, LOST, arguments | {"implementation": implementation}


def of_each(test: str, **values: list[Any]) -> Iterator[Row]:
    """A test with all arguments, on every architecture and implementation."""
    for sm, implementation in COMPILED:
        for case in product(*values.values()):
            arguments = dict(zip(values, case, strict=True))
            yield sm, test, arguments | {"implementation": implementation}


def behavior() -> Iterator[Row]:
    """Tests that say how a cell behaves, whatever its numbers."""
    lost, values, halting = "test_lost_rows", "test_implementations", "test_halting"
    yield from of_each(
        f"{lost}.test_w_that_is_not_finite_loses_the_rows_that_it_reaches",
        act=["tanh", "relu"],
        state=["exact", "float32"],
        bad=[NAN, INF],
    )
    yield from of_each(
        f"{lost}.test_nan_that_came_after_the_forward_pass_is_not_0", act=[*GPU_ACTS]
    )
    for changed in (("w", "exact", 0.01), ("digits", "exact", 0), ("z0", "float32", 0.02)):
        given = dict(zip(("changed", "state", "by"), changed, strict=True))
        yield from of_each(CHANGED, **{name: [value] for name, value in given.items()})
    yield from of_each(f"{values}.test_a_row_does_not_depend_on_the_tiles_of_a_program")
    yield from of_each(f"{values}.test_no_rows", tol=[0.0, 0.1])
    yield from of_each(f"{values}.test_arguments_of_any_strides")
    yield from of_each(f"{values}.test_a_float_state_past_its_precision_gives_nan")
    yield from of_each(f"{values}.test_a_number_out_of_range_raises_the_flag", bad=[NAN, INF, 3e4])
    yield from of_each(
        f"{halting}.test_a_row_that_halts_has_the_bits_of_a_solve_of_its_steps",
        state=["exact", "float32"],
        rows=[70],
        steps=[2],
        tol=[0.95],
    )
    yield from of_each(f"{halting}.test_a_tol_that_nothing_reaches_changes_no_bit")
    yield from of_each(
        f"{halting}.test_a_tile_takes_no_step_that_none_of_its_rows_needs",
        rows=[8],
        steps=[6],
        tol=[0.6],
    )
    yield from of_each(f"{halting}.test_nan_halts_no_row")
    yield from of_each(f"{halting}.test_rows_that_took_other_steps_are_lost", steps=[-1, 1, 1000])


ALL = [*lost_rows(), *behavior()]


def in_a_sample(row: Row) -> bool:
    """A row that became NaN under relu, and digits that changed, by wgmma."""
    sm, test, arguments = row
    if (sm, arguments["implementation"]) != (90, "gluon"):
        return False
    relu = {"act": "relu", "state": "float32", "tol": 0.0}
    return (test == LOST and relu.items() <= arguments.items()) or arguments.get("by") == 0


def named(row: Row) -> str:
    sm, test, arguments = row
    return "-".join([f"sm{sm}", test.partition(".test_")[2], *map(str, arguments.values())])


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=() if in_a_sample(row) else pytest.mark.nightly, id=named(row))
        for row in ALL
    ],
)
def test_a_compiled_cell_behaves_as_the_interpreted_one(compiling: Call, row: Row) -> None:
    compiling(cells.behave, *row)
