"""Where public names were before: in files saved with torch.save, and in imports."""

from __future__ import annotations

import importlib
import subprocess
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


def test_dir_shows_public_names_and_the_version_is_that_of_the_metadata() -> None:
    """In a process of its own: what other tests import becomes an attribute."""
    program = """
import importlib.metadata
import revdeq_kernels, torch_revdeq
for package in (revdeq_kernels, torch_revdeq):
    names = {name for name in dir(package) if not name.startswith("__")}
    assert set(package.__all__) <= names, set(package.__all__) - names
    assert names - set(package.__all__) <= {"adjoints", "models", "plot", "testing"}, names
    assert all(hasattr(package, name) for name in dir(package))
    assert package.__version__ == importlib.metadata.version("revdeq-kernels")
models = torch_revdeq.models
assert {name for name in dir(models) if not name.startswith("__")} == set(models.__all__)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_former_modules_are_found_as_attributes() -> None:
    """``import revdeq_kernels`` alone gave them, and ``import torch_revdeq`` its lazy ones."""
    program = """
import warnings; warnings.simplefilter("ignore")
import revdeq_kernels as rk, torch_revdeq as t
assert not set(t.__all__) - set(dir(t))
assert rk.fixed_point.effective_beta is rk.effective_beta and rk.passes.adjoint_ is rk.adjoint_
assert rk.linear_cell.linear_cell_forward is rk.linear_cell_forward and rk.reference.update_
assert t.regularization.jacobian_penalty is t.jacobian_penalty
assert t.limit.solvers.Picard is t.Picard
"""
    subprocess.run([sys.executable, "-c", program], check=True)
