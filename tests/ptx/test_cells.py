"""The equilibrium cells compiled for GPUs, on the executor: both passes, and rows that halt.

An exact state must be reconstructed bit for bit, so both passes evaluate f to the same bits. Values
and gradients are within the bounds of ``tests/cell/tolerances.py``, and close to the composite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pytest

from revdeq_kernels.dtypes import TRITON, WIDEST
from revdeq_kernels.ops.cell import choice
from revdeq_kernels.ops.cell.choice import GPU_ACTS
from tests.ptx import cells
from tests.ptx.cells import Case

Call = Callable[..., Any]


def launched() -> Iterator[tuple[int, str, str, int]]:
    """Architecture, implementation, dtype of W and features of every kernel that is launched."""
    for implementation, dtypes in choice.FEATURES.items():
        for dtype, features in dtypes.items():
            name = str(dtype).removeprefix("torch.")
            for sm, most in WIDEST[implementation][name].items():
                yield from ((sm, implementation, TRITON[name], d) for d in features if d <= most)


SAMPLE = [
    Case(80, "triton", "bf16", 32, "gelu"),
    Case(80, "gluon", "fp32", 64, "tanh", "float32", steps=2, halting=True),
    Case(90, "triton", "fp16", 64, "silu", beta=0.7312),
    Case(90, "gluon", "bf16", 64),
    Case(100, "triton", "bf16", 64),
]
"""mma of 16 bits and of TF32, wgmma with A in registers and in shared memory, tcgen05."""

EACH = [Case(*kernel, act) for kernel, act in zip(launched(), cycle(GPU_ACTS), strict=False)]

VALUES = [
    Case(*kernel, act, state)
    for kernel in launched()
    for act in GPU_ACTS
    for state in ("exact", "float32")
]

BACK = [
    Case(*kernel, act, beta=beta, steps=5, tiles=tiles)
    for kernel, act in zip(launched(), cycle(reversed(GPU_ACTS)), strict=False)
    for beta, tiles in ((0.5, 3), (0.75, 0), (0.8, 1), (0.7312, 1), (1.3, 0))
]
"""Every form of an exact step, more half steps than a byte has digits, and part of a tile alone."""

HALTING = [
    Case(*kernel, act, state, steps=3, halting=True)
    for kernel, act in zip(launched(), cycle([*GPU_ACTS][1:]), strict=False)
    for state in ("exact", "float32")
]


def tier(mark: pytest.MarkDecorator, cases: list[Case], *before: list[Case]) -> list[Any]:
    """The cases that no tier before has."""
    known = {case for others in before for case in others}
    return [pytest.param(case, marks=mark) for case in dict.fromkeys(cases) if case not in known]


@pytest.mark.parametrize(
    "case",
    [
        *SAMPLE,
        *tier(pytest.mark.slow, EACH, SAMPLE),
        *tier(pytest.mark.nightly, VALUES + BACK + HALTING, SAMPLE, EACH),
    ],
    ids=str,
)
def test_a_compiled_cell_is_its_definition(compiling: Call, case: Case) -> None:
    assert compiling(cells.problems, case) == []
