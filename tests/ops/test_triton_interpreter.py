"""Triton's interpreter with the caching of tests/interpreter.py."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
import triton
import triton.language as tl

from tests.conftest import BACKENDS

pytestmark = pytest.mark.skipif("triton" not in BACKENDS, reason="needs Triton's interpreter")


@triton.jit
def _doubled(x):
    return x + x


@triton.jit
def _double(pointer, N: tl.constexpr):
    place = pointer + tl.arange(0, N)
    tl.store(place, _doubled(tl.load(place)))


def test_types_that_it_remembers_are_told_apart() -> None:
    for dtype in (torch.int64, torch.float32, torch.float16, torch.int32, torch.float32):
        for n in (4, 8, 4):
            numbers = torch.full((n,), 3, dtype=dtype)
            _double[(1,)](numbers, n)  # type: ignore[arg-type]
            assert torch.equal(numbers, torch.full((n,), 6, dtype=dtype))


def test_the_language_is_itself_between_launches() -> None:
    before = tl.tensor.__add__
    _double[(1,)](torch.ones(4), 4)  # type: ignore[arg-type]
    assert tl.tensor.__add__ is before
