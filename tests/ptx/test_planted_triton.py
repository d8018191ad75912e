"""Faults planted in Triton's compiled code are detected, by the bits or by the executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from tests.ptx import planted_triton

Call = Callable[..., Any]


@pytest.mark.parametrize("name", planted_triton.PLANTED)
def test_a_planted_fault_is_noticed(name: str, compiling: Call) -> None:
    assert compiling(planted_triton.attempt, name)


def test_a_wrong_specialization_is_noticed(compiling: Call) -> None:
    assert "misaligned" in compiling(planted_triton.attempt_specialization)


def test_an_index_of_32_bits_is_noticed(compiling: Call) -> None:
    assert "outside" in compiling(planted_triton.attempt_index, 90)
