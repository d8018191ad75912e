"""The ops compiled by Triton on leaves of 2^31 elements and more: some programs are executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.ops.arguments import CHANNELS, LISTS
from tests.ops.device_checks import FORM_BETAS

pytest.importorskip("triton", reason="triton is not installed")

from tests.ptx import triton_channel_grids, triton_grids
from tools.ptx.triton import SHARED_BYTES

Call = Callable[..., Any]
ARCHITECTURES = tuple(SHARED_BYTES)

LARGE = 2**31
MOST = (2**31 - 1) * 1024
"""Elements of as many programs of 1024 as a grid has."""

EXACT_PASS = "invert_z_adjoint_y_exact_.list"

MIXED = [LARGE + 16, 16, 2**33, 32]
"""The first leaf has fewer than 2^31 bytes of digits, if two are in a byte."""

NUMELS = [
    *([LARGE - 1], [LARGE], [LARGE + 1], [LARGE + 16], [2 * LARGE + 5], [2**39 + 9]),
    *([17, 2**33 + 3, 33, 2**34 + 2, LARGE - 4], MIXED, [LARGE - 16, 48]),
]
OF_A_LAYOUT = [
    ((7, LARGE + 1), (LARGE + 1,), 1),
    ((5, 3, LARGE), (3, 1), 2),
    ((LARGE + 3, 5, 7), (5, 1), 1),
    ((3, 2**30 + 1, 3), (2**30 + 1, 1), 3),
    ((2, 3, 2**32 + 1), (3, 1), 1),
    ((2, 2**33), (2**33,), 1),
    ((2**33 + 5,), (1,), 1),
]
"""The shape of the state and of beta, and how many elements its own are apart."""


@pytest.mark.parametrize(
    ("op", "sm"),
    [("update_.list", 80), (EXACT_PASS, 90), ("residual.list", 100), ("adjoint_.list", 120)],
)
def test_leaves_of_both_types_of_index(op: str, sm: int, compiling: Call) -> None:
    assert compiling(triton_grids.check, op, MIXED, sm) > 0


def test_more_bytes_of_digits_than_int32_has_and_fewer_elements(compiling: Call) -> None:
    assert compiling(triton_grids.check, EXACT_PASS, [LARGE - 16, 48], 90, beta=0.99) > 0


def test_channels(compiling: Call) -> None:
    assert compiling(triton_channel_grids.check, "update_.channels", *OF_A_LAYOUT[3], 90) > 0


@pytest.mark.slow
@pytest.mark.parametrize("op", LISTS)
def test_every_op(op: str, compiling: Call) -> None:
    for k, numels in enumerate(NUMELS[-4:]):
        assert compiling(triton_grids.check, op, numels, ARCHITECTURES[k]) > 0


every_architecture = pytest.mark.parametrize("sm", ARCHITECTURES)


@pytest.mark.nightly
@every_architecture
@pytest.mark.parametrize("op", LISTS)
def test_every_size(op: str, sm: int, compiling: Call) -> None:
    for numels in NUMELS:
        assert compiling(triton_grids.check, op, numels, sm) > 0


@pytest.mark.nightly
@every_architecture
@pytest.mark.parametrize("op", [op for op in LISTS if "exact" in op])
def test_every_form(op: str, sm: int, compiling: Call) -> None:
    for beta in FORM_BETAS:
        for numels in NUMELS[-3:]:
            assert compiling(triton_grids.check, op, numels, sm, beta=beta) > 0


@pytest.mark.nightly
@every_architecture
@pytest.mark.parametrize("op", CHANNELS)
def test_every_layout(op: str, sm: int, compiling: Call) -> None:
    for shape, beta, stride in OF_A_LAYOUT:
        assert compiling(triton_channel_grids.check, op, shape, beta, stride, sm) > 0


@pytest.mark.nightly
@every_architecture
def test_as_many_programs_as_a_grid_has(sm: int, compiling: Call) -> None:
    """And sums of the residual that begin 2^31 numbers from the first."""
    for op in ("update_.list", "adjoint_.list", "dequantize.list"):
        assert compiling(triton_grids.check, op, [MOST], sm) > 0
    for small in (4096 * 300, 4096 * 300 + 1):
        assert compiling(triton_grids.check, "residual.list", [2**42 + 1, small], sm) > 0
