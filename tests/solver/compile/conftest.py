"""Every test of the compiler starts without compiled graphs, and with the same weights."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
