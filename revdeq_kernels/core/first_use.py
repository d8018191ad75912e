"""GPU kernels that are not yet validated on an architecture check themselves on first use.

Continuous integration has no GPU: it tests the kernels' arithmetic on the CPU and in Triton's
interpreter, and that they compile. Until a run of the `gpu` tests on an architecture is recorded in
``validated.py``, the first call on a device compares the kernel with the reference on small random
inputs, once per process, and raises on any difference:

- A CUDA kernel is checked with every combination of dtypes that the op supports. This takes up to
  half a second, most of it in the reference.
- A Triton kernel is checked only for what the call compiles it for (``samples.Kind``), because an
  op has 3 to 78 kernels by dtypes alone and each takes seconds to compile. The call then runs the
  kernel compiled for its check. An op on exact states has up to two more kernels checked, for other
  ways to divide. Further kernels are checked when they are first used, except those for tensors of
  2^31 or more elements.

One case bypasses the check: tensors created in inference mode and passed to torch.ops.revdeq
directly, for which torch skips the dispatch layer that runs the check. The public functions run it
in every mode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from .capture import capturing
from .samples import (
    Described,
    Kind,
    Sample,
    copy_laid_out,
    kind_of,
    kinds_of,
    samples,
    samples_like,
)
from .validated import VALIDATED

COMPILED_AS_CALLED = "triton"
"""The backend whose kernels are compiled on first call, each for one kind of arguments."""


class Tried(Described, Protocol):
    """The part of an op that the check uses."""

    label: str
    define: Callable[..., Any]
    check: Callable[..., None]
    run: Callable[..., Any]


_passed: set[tuple[str, str, int | None]] = set()
"""(backend, op, device index) of kernels that need no further check, for any arguments.

A CPU has no index; a tensor on a GPU always has one.
"""
_passed_kinds: dict[tuple[str, str, int | None], set[Kind]] = {}
"""The kinds of arguments for which the other kernels were checked."""
_lock = threading.RLock()


def require(
    backend: str, op: Tried, device: torch.device, args: tuple[Any, ...], kw: dict[str, Any]
) -> None:
    """Check `op` of `backend` on `device` for arguments of this kind, unless already checked.

    RuntimeError if a result differs from the reference in any bit, or if the check is due while a
    CUDA graph is being captured, which it would break.
    """
    key = (backend, op.label, device.index)  # device.type takes longer to read
    if key in _passed:
        return
    passed = _passed_kinds.get(key)
    if passed is not None:
        try:
            if op.overload_name == "list":
                known = passed.issuperset(kinds_of(op, args, kw))
            else:
                known = kind_of(op, args, kw) in passed
        except Exception:
            known = False  # the op's own checks report invalid arguments
        if known:
            return
    _require_first(backend, op, device, args, kw)


def _require_first(
    backend: str, op: Tried, device: torch.device, args: tuple[Any, ...], kw: dict[str, Any]
) -> None:
    key = (backend, op.label, device.index)
    checked = device.type == "cuda" and backend != "reference"
    if not checked or op.label in VALIDATED.get((backend, architecture(device)), frozenset()):
        _passed.add(key)
    elif backend != COMPILED_AS_CALLED:
        _check(backend, op, device, samples(op))
        _passed.add(key)
    else:
        op.check(*args, **kw)
        passed = _passed_kinds.setdefault(key, set())
        for kind in set(kinds_of(op, args, kw)) - passed:
            _check(backend, op, device, samples_like(op, kind, args))
            passed.add(kind)


def _check(backend: str, op: Tried, device: torch.device, given: Iterable[Sample]) -> None:
    if capturing(device):
        such = " with such arguments" if backend == COMPILED_AS_CALLED else ""
        raise RuntimeError(
            f"{op.label}: the {backend} kernel checks itself on first use on a device{such}, "
            "which cannot happen while a CUDA graph is captured; call it once before the capture"
        )
    with _lock:
        compare(backend, op, device, partial(op.run, backend), given)


def architecture(device: torch.device) -> str:
    """The architecture of a GPU, such as "sm_90" (NVIDIA) or "gfx942" (AMD)."""
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def compare(
    backend: str,
    op: Tried,
    device: torch.device,
    run: Callable[..., Any],
    given: Iterable[Sample] | None = None,
) -> None:
    """Compare `op` on `device`, called through `run`, with the reference on the CPU.

    Uses the given samples, or all samples of the op. RuntimeError if any bit differs.
    """
    for args, keywords in samples(op) if given is None else given:
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
                    f"(dtypes {dtypes}) and must not be used; use another backend, for example "
                    "with revdeq_kernels.backend('reference'), and report this"
                )


def _bits(t: Tensor) -> Tensor:
    return t.contiguous().view(torch.uint8)


def _copies(
    args: list[Any], keywords: dict[str, Any], device: torch.device | str
) -> tuple[list[Any], dict[str, Any]]:
    def copy(t: Tensor) -> Tensor:
        """A copy with the same strides and alignment, for which Triton compiles the same code."""
        return copy_laid_out(t, t.data_ptr() % 16 // t.element_size(), device)

    return tree_map_only(Tensor, copy, (args, keywords))
