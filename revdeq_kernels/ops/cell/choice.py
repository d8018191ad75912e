"""Which implementation of the equilibrium cell runs, why another cannot, and first-use checks."""

from __future__ import annotations

import importlib
import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ...core import backends, first_use, libraries
from ...core.capture import capturing
from ...core.checks import BF16, F16, F32
from ...core.op import NAMESPACE
from ...dtypes import WIDEST
from .arguments import FORWARD, Numbers
from .checks import one_of_names

IMPLEMENTATIONS = {
    "composite": NAMESPACE,
    "cpu": f"{NAMESPACE}_cpu",
    "triton": f"{NAMESPACE}_triton",
    "gluon": f"{NAMESPACE}_gluon",
}
"""The implementations, and the namespace of their ops in torch.ops.

composite  matmuls and the half-step ops: the definition, on every device
cpu        C++, one call for all steps, for CPU tensors with up to MOST_FEATURES features
triton     one launch for all steps, for the sizes in FEATURES on the GPUs in ``dtypes.WIDEST``;
           with w in float32, each product is the sum of three TF32 products, as accurate as float32
gluon      the same with the warpgroup instructions of sm_90; also with w in float32
"""

_KERNELS = {"triton": "...triton.kernels.cell", "gluon": "...triton.kernels.gluon_cell"}
"""The modules of the kernels, imported on first use."""

FEATURES: dict[str, dict[torch.dtype, tuple[int, ...]]] = {
    "triton": {BF16: (32, 64, 128), F16: (32, 64, 128), F32: (32, 64)},
    "gluon": {BF16: (64, 128), F16: (64, 128), F32: (64, 128)},
}
"""The numbers of features that the GPU kernels support, by dtype of w."""

GPU_ACTS = ("tanh", "relu", "gelu", "silu")
"""The activations of the GPU kernels, in the order of their numbers in device/activations.py."""

MOST_FEATURES = 512
"""The CPU kernel supports any number of features up to this."""

FASTEST: dict[tuple[str, int, torch.dtype], str] = {}
"""(architecture such as "sm_90", features, dtype of w) -> the fastest implementation, unless it is
the composite. Each entry must cite the stored result behind it; nothing was measured yet."""

FASTEST_BY = ("AVX2", "AVX-512")
"""The instruction sets with which the CPU kernel is the fastest of IMPLEMENTATIONS.

Beside AVX-512 it uses AMX for w in bfloat16, where the processor has it."""


def choose(implementation: str | None, w: Tensor, act: str) -> str:
    """The implementation that runs for a cell with this w and act.

    The named one (here, or "triton" as the backend); otherwise the ``fastest``, or the composite.
    ValueError for an unknown name, or if the named one cannot run; the message says why.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        one_of_names(FORWARD, "implementation", implementation, tuple(IMPLEMENTATIONS))
    if implementation is None and backends.chosen == "triton":
        implementation = "triton"
    reason = None if implementation is None or is_compiling() else why_not(implementation, w, act)
    if reason is not None:
        raise ValueError(f"{FORWARD}: implementation {implementation!r} cannot run: {reason}")
    return implementation or fastest(w, act) or "composite"


def why_not(implementation: str, w: Tensor, act: str) -> str | None:
    """Why an implementation cannot run, and which ones can; None if it can."""
    reason = _reason(implementation, w, act)
    if reason is None:
        return None
    able = [repr(name) for name in IMPLEMENTATIONS if _reason(name, w, act) is None]
    return f"{reason}; use {' or '.join(able)}"


def _reason(implementation: str, w: Tensor, act: str) -> str | None:
    if implementation == "composite":
        return None
    if implementation == "cpu":
        return _reason_on_cpu(w)
    if act not in GPU_ACTS:
        return f"it takes act {', '.join(map(repr, GPU_ACTS))}, got {act!r}"
    if w.shape[0] not in FEATURES[implementation].get(w.dtype, ()):
        kinds = "; ".join(
            f"{', '.join(map(str, features))} in {dtype}"
            for dtype, features in FEATURES[implementation].items()
        )
        return f"it takes features of {kinds}, got {w.shape[0]} in {w.dtype}"
    if reason := backends.why_not("triton", w.device.type):
        return reason
    widest = {f"sm_{a}": d for a, d in _widest(implementation, w.dtype).items()}
    if w.device.type == "cuda":
        return _reason_on(first_use.architecture(w.device), w.shape[0], widest)
    if implementation == "gluon":
        gpus = ", ".join(widest)
        return f"Triton's interpreter does not support Gluon; it takes tensors on a GPU of {gpus}"
    return None


def _reason_on_cpu(w: Tensor) -> str | None:
    if not 1 <= w.shape[0] <= MOST_FEATURES or w.dtype not in (BF16, F16, F32):
        kinds = f"{BF16}, {F16} and {F32}"
        return f"it takes 1 to {MOST_FEATURES} features in {kinds}, got {w.shape[0]} in {w.dtype}"
    if reason := backends.why_not("cpu", w.device.type):
        return reason
    return None if _instruction_set() else "it is newer than the compiled extension; rebuild that"


def _instruction_set() -> str:
    """The best instruction set of this CPU that the kernel supports; "" if it is not compiled."""
    return _cached_instruction_set()


# As in backends.py: torch.compile keeps the result.
_instruction_set.__dict__["_dynamo_marked_constant"] = True


@cache
def _cached_instruction_set() -> str:
    if not hasattr(getattr(torch.ops, NAMESPACE), "_linear_cell_forward_"):
        return ""
    return libraries.cpu_instruction_set()


def _widest(implementation: str, dtype: torch.dtype) -> dict[int, int]:
    return WIDEST[implementation][str(dtype).removeprefix("torch.")]


def _reason_on(architecture: str, features: int, widest: dict[str, int]) -> str | None:
    if features <= widest.get(architecture, 0):
        return None
    limits = ", ".join(f"{name} up to {most} features" for name, most in widest.items())
    return f"it takes GPUs of {limits}, got {features} on {architecture}"


_tried: set[tuple[Any, ...]] = set()
_lock = threading.RLock()


def try_first(implementation: str, w: Tensor, act: str, state: str, halting: bool) -> None:
    """Check an implementation for such cells on the device of `w`, unless already checked.

    RuntimeError if results differ from the composite, or if the initial state is not reconstructed,
    or during the capture of a CUDA graph, which the check would break.
    """
    key = (implementation, w.device.index, w.dtype, w.shape[0], act, state, halting)
    if w.device.type != "cuda" or key in _tried:
        return
    if capturing(w.device):
        raise RuntimeError(
            f"{FORWARD}: {implementation!r} checks itself on first use on a device, which "
            "cannot happen while a CUDA graph is captured; call it once before the capture"
        )
    with _lock:
        if reason := launcher(implementation).differs(w.device, *key[2:]):
            raise RuntimeError(
                f"{FORWARD}: {implementation!r} must not be used on {w.device}: {reason}; use "
                "implementation='composite', and report this"
            )
        _tried.add(key)


def fastest(w: Tensor, act: str) -> str | None:
    """The implementation that is known to be the fastest for such a cell; None if unknown.

    On a CPU with one of FASTEST_BY it is the C++ kernel, unless another backend was named; on a
    GPU it is the entry of FASTEST.
    """
    if w.device.type == "cpu":
        able = backends.chosen in (None, "cpu") and _reason_on_cpu(w) is None
        return "cpu" if able and _instruction_set() in FASTEST_BY else None
    if not FASTEST or w.device.type != "cuda" or act not in GPU_ACTS:
        return None
    return FASTEST.get((first_use.architecture(w.device), w.shape[0], w.dtype))


@cache
def launcher(implementation: str) -> Any:
    """The ``triton.launch.cell.Launcher`` for the kernels of an implementation."""
    launch = importlib.import_module("...triton.launch.cell", __package__)
    return launch.Launcher(importlib.import_module(_KERNELS[implementation], __package__))


def ready(implementation: str, w: Tensor, numbers: Numbers) -> None:
    """Raise unless the implementation can run and has passed its first-use check."""
    if implementation == "composite":
        return
    if reason := why_not(implementation, w, numbers.act):
        raise ValueError(f"{FORWARD}: implementation {implementation!r} cannot run: {reason}")
    try_first(implementation, w, numbers.act, numbers.state, numbers.halting)
