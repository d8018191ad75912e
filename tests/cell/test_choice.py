"""Which implementation of the equilibrium cell runs, why another cannot, and first-use checks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import revdeq_kernels as rk
from revdeq_kernels.core import backends, first_use
from revdeq_kernels.ops.cell import choice as cell_choice
from tests.cell.linear_cells import make, run
from tests.conftest import BACKENDS
from tests.two_gpus import SECOND, TwoGpus
from torch_revdeq import LinearCell, RevDEQ

if "triton" not in BACKENDS:
    pytest.skip("Triton's interpreter is off", allow_module_level=True)

F32, BF16 = torch.float32, torch.bfloat16

UNSUITED = [
    ("triton", 100, F32, "it takes features of 32, 64, 128 in torch.bfloat16; .*; 32, 64 in "
     "torch.float32, got 100 "),
    ("triton", 128, F32, "got 128 in torch.float32; use 'composite'"),
    ("triton", 256, BF16, "got 256 in torch.bfloat16; use 'composite'"),
    ("gluon", 32, BF16, "it takes features of 64, 128 in torch.bfloat16; .*; 64, 128 in "
     "torch.float32, got 32 "),
    ("gluon", 32, F32, "got 32 in torch.float32; use 'composite'"),
    ("gluon", 256, BF16, "got 256 in torch.bfloat16; use 'composite'"),
    ("gluon", 64, BF16, "interpreter does not support Gluon; it takes tensors on a GPU of sm_90"),
    ("gluon", 128, F32, "interpreter does not support Gluon; .* on a GPU of sm_80, sm_90, sm_100"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "d", "dtype", "message"), UNSUITED)
def test_a_kernel_that_was_named_and_cannot_run_says_what_it_takes(
    name: str, d: int, dtype: torch.dtype, message: str
) -> None:
    cell = make(6, d, dtype)
    by_name = f"^linear_cell_forward: implementation '{name}' cannot run: .*{message}"
    with pytest.raises(ValueError, match=by_name):
        run(cell, implementation=name)
    op = getattr(torch.ops, cell_choice.IMPLEMENTATIONS[name]).linear_cell_forward
    with pytest.raises(ValueError, match=by_name):
        op(*cell.tensors, *cell.numbers)
    if name == "triton":
        with rk.backend("triton"), pytest.raises(ValueError, match=by_name):
            run(cell)
    layer = RevDEQ(LinearCell(8, d, dtype=dtype), implementation=name)
    with pytest.raises(ValueError, match=f"implementation: '{name}' cannot take this solve: "):
        layer(torch.randn(6, 8, dtype=dtype))


@pytest.mark.parametrize("name", ["triton", "gluon"])
def test_a_kernel_takes_no_activation_that_it_does_not_have(name: str) -> None:
    cell = make(6, 64, F32, act="gelu_tanh")
    message = "it takes act 'tanh', 'relu', 'gelu', 'silu', got 'gelu_tanh'; use 'composite'"
    with pytest.raises(ValueError, match=message):
        run(cell, implementation=name)
    with pytest.raises(ValueError, match=message):
        RevDEQ(LinearCell(8, 64, "gelu_tanh"), implementation=name)(torch.randn(6, 8))


SM_80_ON = "sm_80 up to 64 features, sm_90 up to 128 features, sm_100 up to 128 features"

ON_GPUS = [
    ("triton", "sm_80", 64, BF16, True, ""),
    ("triton", "sm_80", 128, BF16, False, SM_80_ON),
    ("triton", "sm_90", 128, BF16, True, ""),
    ("triton", "sm_120", 32, BF16, False, SM_80_ON),
    ("gluon", "sm_90", 128, BF16, True, ""),
    ("gluon", "sm_100", 128, BF16, False, "sm_90 up to 128 features"),
    ("gluon", "sm_80", 128, F32, False, SM_80_ON),
    ("gluon", "sm_100", 128, F32, True, ""),
    ("gluon", "sm_120", 128, F32, False, SM_80_ON),
]


@pytest.mark.parametrize(("name", "architecture", "d", "dtype", "taken", "limits"), ON_GPUS)
def test_a_gpu_that_does_not_hold_the_kernels_is_refused(
    name: str,
    architecture: str,
    d: int,
    dtype: torch.dtype,
    taken: bool,
    limits: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(first_use, "architecture", lambda device: architecture)
    monkeypatch.setattr(backends, "why_not", lambda name, device: None)
    w: Any = SimpleNamespace(shape=(d, d), dtype=dtype, device=torch.device("cuda", 0))
    reason = cell_choice.why_not(name, w, "tanh")
    assert (reason is None) == taken
    if reason is not None:
        assert f"it takes GPUs of {limits}" in reason and "'composite'" in reason
    assert cell_choice.choose(None, w, "tanh") == "composite"


def test_the_backend_names_the_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    w = make(6, 32, F32).w
    monkeypatch.setattr(cell_choice, "fastest", lambda w, act: "triton")
    assert cell_choice.choose("composite", w, "tanh") == "composite"
    assert cell_choice.choose(None, w, "tanh") == "triton"
    monkeypatch.setattr(cell_choice, "fastest", lambda w, act: None)
    assert cell_choice.choose(None, w, "tanh") == "composite"
    with rk.backend("triton"):
        assert cell_choice.choose(None, w, "tanh") == "triton"
        assert cell_choice.choose("composite", w, "tanh") == "composite"


def test_what_was_measured_on_a_gpu_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for an activation that it does not have."""
    monkeypatch.setattr(first_use, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(cell_choice, "FASTEST", {("sm_90", 64, F32): "triton"})
    w: Any = SimpleNamespace(shape=(64, 64), dtype=F32, device=torch.device("cuda", 0))
    assert cell_choice.fastest(w, "tanh") == "triton"
    assert cell_choice.fastest(w, "gelu_tanh") is None


def test_a_trial_is_made_once_for_a_kind_of_cell(
    monkeypatch: pytest.MonkeyPatch, two_gpus: TwoGpus
) -> None:
    outcomes = {"tanh": "", "relu": "it differs"}
    tried: list[str] = []

    class Launcher:
        @staticmethod
        def differs(device: Any, dtype: Any, d: int, act: str, state: str, halting: bool) -> str:
            tried.append(act)
            assert device == SECOND
            return outcomes[act]

    class OnCuda:
        device, dtype, shape = SECOND, F32, (32, 32)

    w: Any = OnCuda()
    monkeypatch.setattr(cell_choice, "launcher", lambda implementation: Launcher)
    monkeypatch.setattr(cell_choice, "_tried", set())
    for captured in (0, 1):  # of the current device, and of the cell's
        two_gpus.captured = {captured}
        with pytest.raises(RuntimeError, match="call it once before the capture"):
            cell_choice.try_first("triton", w, "tanh", "exact", False)
    two_gpus.captured = set()
    for _ in range(2):
        cell_choice.try_first("triton", w, "tanh", "exact", False)
        with pytest.raises(RuntimeError, match="'triton' must not be used on cuda:1: it differs"):
            cell_choice.try_first("triton", w, "relu", "exact", False)
    assert tried == ["tanh", "relu", "relu"]
    cell_choice.try_first("triton", w, "tanh", "exact", True)
    cell_choice.try_first("gluon", w, "tanh", "exact", False)
    assert tried == ["tanh", "relu", "relu", "tanh", "tanh"]
    two_gpus.captured = {1}
    cell_choice.try_first("triton", w, "tanh", "exact", False)
