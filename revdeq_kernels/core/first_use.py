"""GPU kernels that no test has yet run on an architecture check themselves at their first use.

Continuous integration has no GPU: it proves the kernels' arithmetic on the CPU and in Triton's
interpreter, and that they compile. Until a run of the `gpu` tests on an architecture is recorded in
VALIDATED, the first call of an op on a device compares it with the reference on small random
inputs, which costs some milliseconds once per process, and raises on any difference. One way leads
past the check: tensors made in inference mode and given to torch.ops.revdeq itself, for which torch
skips the layer that asks for it. The public functions ask in every mode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from .samples import Described, samples

VALIDATED: dict[tuple[str, str], frozenset[str]] = {}
"""(backend, architecture such as "sm_90") -> names of the ops whose `gpu` tests passed there."""


class Tried(Described, Protocol):
    """What the check needs of an op."""

    label: str
    define: Callable[..., Any]


_passed: set[tuple[str, str, int | None]] = set()
_lock = threading.RLock()


def require(backend: str, op: Tried, device: torch.device, run: Callable[..., Any]) -> None:
    """Check `op` of `backend` on `device` unless that was done; `run` calls it, unchecked.

    RuntimeError if a result differs from the reference in any bit, or if this is the first use and
    a CUDA graph is being captured, which the check would break.
    """
    if device.type != "cuda" or backend == "reference":
        return
    key = (backend, op.label, device.index)
    if key in _passed:
        return
    if op.label not in VALIDATED.get((backend, architecture(device)), frozenset()):
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{op.label}: the {backend} kernel checks itself at its first use on a device, "
                "which cannot happen while a CUDA graph is captured; call it once before the "
                "capture"
            )
        with _lock:
            compare(backend, op, device, run)
    _passed.add(key)


def architecture(device: torch.device) -> str:
    """The architecture of a GPU: "sm_90" on NVIDIA, "gfx942" on AMD."""
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def compare(backend: str, op: Tried, device: torch.device, run: Callable[..., Any]) -> None:
    """Run `op` on `device` and the reference on the CPU; RuntimeError if any bit differs."""
    for args, keywords in samples(op):
        expected, actual = _copies(args, keywords, "cpu"), _copies(args, keywords, device)
        results = [
            [*args, *keywords.values(), function(*args, **keywords)]
            for function, (args, keywords) in ((op.define, expected), (run, actual))
        ]
        for want, got in zip(*(tree_leaves(result) for result in results), strict=True):
            if isinstance(want, Tensor) and not torch.equal(_bits(want), _bits(got.cpu())):
                leaves = tree_leaves(args)
                dtypes = ", ".join(str(a.dtype) for a in leaves if isinstance(a, Tensor))
                raise RuntimeError(
                    f"{op.label}: the {backend} kernel on {device} differs from the reference "
                    f"(dtypes {dtypes}) and must not be used; take another backend, for instance "
                    "with revdeq_kernels.backend('reference'), and report this"
                )


def _bits(t: Tensor) -> Tensor:
    return t.view(torch.uint8)


def _copies(
    args: list[Any], keywords: dict[str, Any], device: torch.device | str
) -> tuple[list[Any], dict[str, Any]]:
    def copy(t: Tensor) -> Tensor:
        return t.to(device, copy=True)

    return tree_map_only(Tensor, copy, (args, keywords))
