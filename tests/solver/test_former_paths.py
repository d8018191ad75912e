"""Where public names were before: in files saved with torch.save, and in imports."""

from __future__ import annotations

import importlib
import sys

import pytest

import revdeq_kernels

FORMER = {
    "revdeq_kernels.backends": ["available_backends", "backend"],
    "revdeq_kernels.fixed_point": ["digit_base", "digit_bytes", "effective_beta"],
    "revdeq_kernels.linear_cell": ["linear_cell_backward", "linear_cell_forward"],
    "revdeq_kernels.passes": sorted(n for n in revdeq_kernels.__all__ if "adjoint" in n),
    "torch_revdeq.boundary": ["CaptureError"],
    "torch_revdeq.iterations": ["Anderson", "Picard", "Relaxed"],
    "torch_revdeq.linear_cell": ["LinearCell"],
    "torch_revdeq.module": ["RevDEQ"],
    "torch_revdeq.verification": ["RangeError", "ReconstructionError"],
}


@pytest.mark.parametrize("path", FORMER)
def test_a_former_path_warns_and_holds_the_same_objects(path: str) -> None:
    package = importlib.import_module(path.partition(".")[0])
    sys.modules.pop(path, None)
    with pytest.warns(DeprecationWarning, match=f"{path} has moved"):
        former = importlib.import_module(path)
    for name in FORMER[path]:
        assert getattr(former, name) is getattr(package, name)
