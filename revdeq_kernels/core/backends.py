"""Which backend runs an op, and why another one cannot.

    cuda       C++/CUDA kernels, the default for CUDA tensors on NVIDIA GPUs
    cpu        C++ kernels, the default for CPU tensors
    triton     Triton kernels, the default for GPU tensors if torch is built for ROCm
    reference  plain PyTorch: the definition, slow, on any device

The device of the state selects the backend, unless ``backend(name)`` or the environment variable
REVDEQ_BACKEND names one. A named backend that cannot run raises; there is no silent fallback. If
the package was installed without compiled kernels, Triton (on GPUs) or the reference becomes the
default, with a single warning.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from functools import cache, lru_cache
from types import ModuleType

import torch

from . import libraries

NAMES = ("cuda", "cpu", "triton", "reference")
COMPILED = ("cuda", "cpu")
"""The backends behind torch.ops.revdeq; the others are Python."""

ENVIRONMENT = "REVDEQ_BACKEND"

# Process-wide: autograd runs backward passes on its own threads, which must use the same backend.
chosen: str | None = os.environ.get(ENVIRONMENT) or None
_missing: dict[str, str] = {}  # why a compiled backend cannot run
_left_out: set[str] = set()  # the missing backends that the package was installed without


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Context manager that runs the ops on the backend `name`: cuda, cpu, triton or reference.

    The choice applies to the whole process, not only to this thread, because autograd runs backward
    passes on its own threads.

    Raises:
        ValueError: `name` is not a backend.
        RuntimeError: the backend cannot run here; the message gives the reason.
    """
    global chosen
    _check_name(name, "backend")
    if reason := why_not(name):
        raise RuntimeError(f"backend {name!r} cannot run: {reason}")
    previous, chosen = chosen, name
    try:
        yield
    finally:
        chosen = previous


def select(device_type: str) -> str:
    """The backend that runs for tensors on `device_type`; RuntimeError with the reason if none."""
    return _resolve(chosen, device_type)


def available_backends(device_type: str) -> list[str]:
    """The names of the backends that can run for tensors on `device_type` ("cpu", "cuda")."""
    return [name for name in NAMES if why_not(name, device_type) is None]


def why_not(name: str, device_type: str | None = None) -> str | None:
    """Why the backend cannot run (for tensors on `device_type`, if given); None if it can."""
    if name == "reference":
        return None
    if name in _missing:
        return _missing[name]
    if name == "triton":
        return _why_not_triton(device_type)
    if name == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA device (torch.cuda.is_available() is False)"
    if device_type not in (None, name):
        return f"its kernels require tensors on {name}, these are on {device_type}"
    return None


@cache
def implementation(name: str) -> ModuleType:
    """The module that implements a Python backend."""
    module = {"triton": "..triton.launch", "reference": "..reference"}[name]
    return importlib.import_module(module, __package__)


def load_compiled() -> None:
    """Load the compiled libraries, noting what is missing and why."""
    if not libraries.CPU.exists():
        reason = "the package was installed without its compiled extension; build it: pip install ."
        if installed := libraries.hidden():
            reason = (
                f"you are importing the source tree in {libraries.CPU.parent}, which hides the "
                f"installed package in {installed}: run Python from another directory or use "
                "`pip install -e .`"
            )
        _missing.update(cpu=reason, cuda=reason)
        _left_out.update(COMPILED)
        return
    if reason := libraries.load(libraries.CPU):
        reason = f"the compiled extension did not load ({reason}); build it again: pip install ."
        _missing.update(cpu=reason, cuda=reason)
        return
    if torch.version.cuda is None:
        _missing["cuda"] = f"torch {torch.__version__} is built without CUDA"
    elif not libraries.CUDA.exists():
        _left_out.add("cuda")
        _missing["cuda"] = (
            "the package was built without its CUDA library (no nvcc, or REVDEQ_BUILD_CUDA=0); "
            "install it again where nvcc is, with REVDEQ_BUILD_CUDA=1"
        )
    elif reason := libraries.load(libraries.CUDA):
        _missing["cuda"] = f"{libraries.CUDA.name} did not load: {reason}"


def _check_name(name: str, where: str) -> None:
    if name not in NAMES:
        raise ValueError(f"{where}: expected one of {', '.join(NAMES)}, got {name!r}")


def _resolve(name: str | None, device_type: str) -> str:
    return _cached(name, device_type)


# torch.compile calls this once and keeps the result, instead of tracing the search for devices and
# Triton. torch.compiler.assume_constant_result does the same, but imports torch._dynamo.
_resolve.__dict__["_dynamo_marked_constant"] = True


@lru_cache(maxsize=64)
def _cached(name: str | None, device_type: str) -> str:
    return _default(device_type) if name is None else _require(name, device_type)


def _require(name: str, device_type: str) -> str:
    _check_name(name, ENVIRONMENT)
    if reason := why_not(name, device_type):
        able = ", ".join(available_backends(device_type))
        raise RuntimeError(
            f"backend {name!r} cannot run for {device_type} tensors: {reason}; available: {able}"
        )
    return name


def _default(device_type: str) -> str:
    gpu = "cuda" if torch.version.hip is None else "triton"
    # Meta tensors have no data: the compiled ops' fake kernels serve them.
    name = {"cpu": "cpu", "cuda": gpu, "meta": "cpu"}.get(device_type, "reference")
    if name == "reference":
        raise RuntimeError(
            f"no default backend for {device_type} tensors; "
            f"choose one: with revdeq_kernels.backend('reference'): ..."
        )
    if name in _left_out:
        return _stand_in(name, device_type)
    return name if device_type == "meta" else _require(name, device_type)


def _stand_in(name: str, device_type: str) -> str:
    """The backend that runs where the default one was not installed; the caller is told."""
    gpu = device_type == "cuda" and _why_not_triton(device_type) is None
    able, how = ("triton", "") if gpu else ("reference", ", slowly")
    warnings.warn(
        f"revdeq_kernels: {name!r}, the default backend for {device_type} tensors, cannot run: "
        f"{_missing[name]}. {able!r} runs, with the same bits{how}; {ENVIRONMENT}={able} chooses "
        "it without this warning",
        stacklevel=2,
    )
    return able


def _why_not_triton(device_type: str | None) -> str | None:
    try:
        from triton import knobs
    except ImportError as error:
        return f"triton is not installed or too old ({error}): pip install 'triton>=3.6'"
    interpreted = bool(knobs.runtime.interpret)
    if interpreted and device_type in (None, "cpu"):
        return None
    if device_type == "cpu" or not torch.cuda.is_available():
        return (
            "Triton needs a GPU; with TRITON_INTERPRET=1 set before the program starts, its "
            "interpreter runs on CPU tensors, slowly"
        )
    return None
