"""Which backend runs: by device, by the context manager, by the environment; and why one cannot."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import revdeq_kernels as rk
from revdeq_kernels import reference
from revdeq_kernels.core import backends, libraries
from revdeq_kernels.core.op import OPS
from tests.ops.arguments import call, good_arguments


@pytest.fixture(autouse=True)
def _no_choice_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "chosen", None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with each call of the reference's update_."""
    seen: list[str] = []
    update = reference.update_

    def counted(*args: object, **keywords: object) -> None:
        seen.append("reference")
        update(*args, **keywords)

    monkeypatch.setattr(OPS["update_"], "define", counted)
    return seen


def update() -> torch.Tensor:
    return rk.update_(torch.ones(3), torch.zeros(3), 0.5)


# ---- the context manager ---------------------------------------------------------------------


def test_the_context_manager_chooses_and_restores(calls: list[str]) -> None:
    update()
    assert calls == []
    with rk.backend("reference"):
        update()
        assert len(calls) == 1
        with rk.backend("cpu"):
            update()
            assert len(calls) == 1
        update()
        assert len(calls) == 2
    update()
    assert len(calls) == 2


def test_the_context_manager_restores_after_an_exception() -> None:
    with rk.backend("reference"):
        with pytest.raises(KeyError), rk.backend("cpu"):
            raise KeyError
        assert backends.chosen == "reference"
    assert backends.chosen is None


def test_the_choice_holds_on_other_threads(calls: list[str]) -> None:
    """As autograd's threads must see it."""
    with rk.backend("reference"):
        thread = threading.Thread(target=update)
        thread.start()
        thread.join()
    assert len(calls) == 1


def test_an_unknown_name_is_refused() -> None:
    message = "backend: expected one of cuda, cpu, triton, reference, got 'gpu'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"), rk.backend("gpu"):
        pytest.fail("entered")
    assert backends.chosen is None


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._missing, "cuda", "the moon is full")
    message = "backend 'cuda' cannot run: the moon is full"
    with pytest.raises(RuntimeError, match=f"^{message}$"), rk.backend("cuda"):
        pytest.fail("entered")
    assert backends.chosen is None


# ---- choice by device ------------------------------------------------------------------------


def test_the_default_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.select("cpu") == "cpu"
    assert backends.select("meta") == "cpu"
    monkeypatch.setattr(backends, "_left_out", set())
    monkeypatch.setattr(backends, "why_not", lambda name, device_type=None: None)
    backends._cached.cache_clear()
    assert backends.select("cuda") == "cuda"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    backends._cached.cache_clear()
    assert backends.select("cuda") == "triton"
    backends._cached.cache_clear()


@pytest.mark.parametrize(("triton", "stand_in"), [(None, "triton"), ("no triton", "reference")])
def test_what_was_not_installed_has_a_stand_in_and_a_warning(
    triton: str | None, stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_left_out", {"cuda"})
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setitem(backends._missing, "cuda", "the moon is full")
    monkeypatch.setattr(backends, "_why_not_triton", lambda device_type: triton)
    backends._cached.cache_clear()
    message = f"'cuda', the default .* the moon is full. '{stand_in}' runs, with the same bits"
    with pytest.warns(UserWarning, match=message):
        assert backends.select("cuda") == stand_in
    assert backends.select("cuda") == stand_in  # and once only: warnings are errors here
    with pytest.raises(RuntimeError, match="the moon is full"), rk.backend("cuda"):
        pytest.fail("entered")
    backends._cached.cache_clear()


def test_a_device_without_a_default_names_the_way_out() -> None:
    with pytest.raises(RuntimeError, match=r"no default backend for xpu tensors; .*reference"):
        backends.select("xpu")
    with rk.backend("reference"):
        assert backends.select("xpu") == "reference"


def test_a_backend_for_another_device_is_refused_with_those_that_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is put in its place, although the reference could run."""
    monkeypatch.setattr(backends, "why_not", why_not_as_if_with_cuda)
    backends._cached.cache_clear()
    arguments = good_arguments("update_")
    before = arguments["state"].clone()
    with rk.backend("cuda"), pytest.raises(RuntimeError) as caught:
        call("update_", arguments)
    backends._cached.cache_clear()
    assert "backend 'cuda' cannot run for cpu tensors: its kernels require tensors on cuda" in str(
        caught.value
    )
    assert "available: cpu, " in str(caught.value)
    assert torch.equal(arguments["state"], before)


def why_not_as_if_with_cuda(name: str, device_type: str | None = None) -> str | None:
    if name == "cuda" and device_type == "cpu":
        return "its kernels require tensors on cuda, these are on cpu"
    return None


def test_available_backends() -> None:
    assert rk.available_backends("cpu") == [
        name for name in backends.NAMES if backends.why_not(name, "cpu") is None
    ]
    assert {"cpu", "reference"} <= set(rk.available_backends("cpu"))
    assert "cuda" not in rk.available_backends("cpu")
    assert rk.available_backends("xpu")[-1] == "reference"


# ---- what is missing -------------------------------------------------------------------------


def test_why_not_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_missing", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds no CUDA device" in str(backends.why_not("cuda"))
    assert backends.why_not("reference", "xpu") is None
    assert "these are on cuda" in str(backends.why_not("cpu", "cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backends.why_not("cuda") is None
    assert "these are on cpu" in str(backends.why_not("cuda", "cpu"))


def test_why_not_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = SimpleNamespace(runtime=SimpleNamespace(interpret=False))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(knobs=knobs))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "Triton needs a GPU" in str(backends.why_not("triton"))
    assert "TRITON_INTERPRET=1" in str(backends.why_not("triton", "cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backends.why_not("triton") is None
    assert backends.why_not("triton", "cuda") is None
    assert "Triton needs a GPU" in str(backends.why_not("triton", "cpu"))
    knobs.runtime.interpret = True
    assert backends.why_not("triton", "cpu") is None
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install 'triton>=3.6'" in str(backends.why_not("triton"))


@pytest.fixture
def _loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """load_compiled() starts over, on a torch with CUDA."""
    monkeypatch.setattr(backends, "_missing", {})
    monkeypatch.setattr(backends, "_left_out", set())
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.usefixtures("_loading")
def test_what_load_compiled_finds_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(libraries, "CUDA", tmp_path / "librevdeq_cuda.so")
    backends.load_compiled()
    assert "REVDEQ_BUILD_CUDA=1" in backends._missing.pop("cuda")
    assert backends._left_out == {"cuda"}
    (tmp_path / "librevdeq_cuda.so").write_text("no library")
    backends.load_compiled()
    reason = f"librevdeq_cuda.so did not load: {tmp_path}/librevdeq_cuda.so: file too short"
    assert backends._missing.pop("cuda") == reason
    monkeypatch.setattr(torch.version, "cuda", None)
    backends.load_compiled()
    assert "is built without CUDA" in backends._missing.pop("cuda")
    assert backends._missing == {}
    monkeypatch.setattr(libraries, "CPU", tmp_path / "librevdeq_cpu.so")
    backends.load_compiled()
    for name in ("cpu", "cuda"):
        assert "installed without its compiled extension" in str(backends.why_not(name))
        assert "pip install ." in str(backends.why_not(name))
    assert backends._left_out == {"cpu", "cuda"}
