"""Every signature of the ops' kernels that `make triton-aot` compiles is also executed.

Each has a call that launches exactly this signature, and the executor supports all instructions of
the compiled code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from tests.ptx import triton_signatures
from tools.ptx.triton import SHARED_BYTES

Call = Callable[..., Any]
ARCHITECTURES = tuple(SHARED_BYTES)
KERNELS = sorted({row.name for row in triton_signatures.listed()})
EVERY = 9
"""Of the signatures, in the slow tier."""

every_architecture = pytest.mark.parametrize("sm", ARCHITECTURES)


def test_every_signature_has_a_call_that_launches_it(compiling: Call) -> None:
    assert compiling(triton_signatures.not_launched, 90) == []


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_some_signatures(kernel: str, compiling: Call) -> None:
    sm = ARCHITECTURES[KERNELS.index(kernel) % len(ARCHITECTURES)]
    assert compiling(triton_signatures.check, kernel, sm, EVERY) > 0


@pytest.mark.nightly
@every_architecture
@pytest.mark.parametrize("kernel", KERNELS)
def test_all_signatures(kernel: str, sm: int, compiling: Call) -> None:
    assert compiling(triton_signatures.check, kernel, sm) > 0


of_ops_and_cells = pytest.mark.parametrize("cells", [False, True], ids=["ops", "cells"])


@pytest.mark.slow
@every_architecture
@of_ops_and_cells
def test_the_executor_has_the_instructions_of_some(sm: int, cells: bool, compiling: Call) -> None:
    assert compiling(triton_signatures.missing, sm, 4 * EVERY, cells) == {}


@pytest.mark.nightly
@every_architecture
@of_ops_and_cells
def test_the_executor_has_the_instructions_of_all(sm: int, cells: bool, compiling: Call) -> None:
    assert compiling(triton_signatures.missing, sm, 1, cells) == {}
