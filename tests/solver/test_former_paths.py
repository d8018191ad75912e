"""Where public classes were before: in files saved with torch.save, and in imports."""

from __future__ import annotations

import importlib
import sys

import pytest

import torch_revdeq

FORMER = {
    "boundary": ["CaptureError"],
    "iterations": ["Anderson", "Picard", "Relaxed"],
    "linear_cell": ["LinearCell"],
    "module": ["RevDEQ"],
    "verification": ["RangeError", "ReconstructionError"],
}


@pytest.mark.parametrize("path", FORMER)
def test_a_former_path_warns_and_holds_the_same_classes(path: str) -> None:
    sys.modules.pop(f"torch_revdeq.{path}", None)
    with pytest.warns(DeprecationWarning, match=f"torch_revdeq.{path} has moved"):
        former = importlib.import_module(f"torch_revdeq.{path}")
    assert sorted(former.__all__) == FORMER[path]
    for name in former.__all__:
        assert getattr(former, name) is getattr(torch_revdeq, name)
