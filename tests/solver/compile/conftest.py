"""Every test of the compiler begins without graphs of the one before, with the same weights."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
