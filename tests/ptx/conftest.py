"""Fixture of the tests of compiled Triton kernels: a process that compiles them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.ptx.compiling import compiling_process


@pytest.fixture(scope="session")
def compiling() -> Iterator[Callable[..., Any]]:
    """Calls a function in a process in which Triton compiles; see ``compiling_process``."""
    pytest.importorskip("triton", reason="triton is not installed")
    with compiling_process() as call:
        yield call
