"""Every op compiled by Triton for four architectures, and executed: the reference's bits.

The default tier runs each overload on one architecture, the slow tier more, the nightly tier all
cases on all. Compiled code is cached in build/ptx: a second run takes a third of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.ops.arguments import OVERLOADS

pytest.importorskip("triton", reason="triton is not installed")

from tests.ptx import triton_ops
from tools.ptx.triton import SHARED_BYTES

Call = Callable[..., Any]
ARCHITECTURES = tuple(SHARED_BYTES)
EVERY = 7
"""Of the cases, in the slow tier."""


def turn(op: str) -> int:
    """The architecture whose turn an op is."""
    return ARCHITECTURES[OVERLOADS.index(op) % len(ARCHITECTURES)]


every_op = pytest.mark.parametrize("op", OVERLOADS)


@every_op
def test_one_call(op: str, compiling: Call) -> None:
    assert compiling(triton_ops.check_first, op, turn(op)) > 0


@pytest.mark.slow
@every_op
def test_some_calls(op: str, compiling: Call) -> None:
    assert compiling(triton_ops.check_all, op, turn(op), EVERY) > 0


@pytest.mark.nightly
@pytest.mark.parametrize("sm", ARCHITECTURES)
@every_op
def test_all_calls(op: str, sm: int, compiling: Call) -> None:
    assert compiling(triton_ops.check_all, op, sm) > 0
