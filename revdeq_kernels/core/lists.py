"""Argument checks of ops on lists of leaves: how many, each by itself, and what they share."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..ops.checks import Check
from .checks import Arguments, meet, refuse, refuse_overlap

SHARED = ("flag", "beta", "next_beta", "scale", "frac_bits", "tie", "dtype")
"""The arguments of which lists of leaves have one for all."""


def check_leaves(check: Check, op: str, *args: Any, **kw: Any) -> None:
    """Check the arguments of an op that takes lists: how many, each leaf by itself, and memory."""
    names = list(inspect.signature(check).parameters)[1:]
    named = dict(zip(names, args, strict=False)) | kw
    named = {name: value for name, value in named.items() if value is not None}
    _check_counts(op, named)
    memories: list[Arguments] = []
    for k in range(len(named[names[0]])):
        label = f"{op}: leaf {k}"
        memories.append(check(label, *leaf_of(args, k), **leaf_of(kw, k)))
        _check_same_device(label, names[0], named[names[0]][k], named[names[0]][0])
    _check_overlap_of_leaves(op, memories)


def leaf_of(values: Any, k: int) -> Any:
    """The values (a tuple, or a dict) with every list replaced by its element `k`."""
    if isinstance(values, dict):
        return {name: leaf_of((value,), k)[0] for name, value in values.items()}
    return tuple(value[k] if isinstance(value, (list, tuple)) else value for value in values)


def _check_counts(op: str, named: dict[str, Any]) -> None:
    lists = {name: value for name, value in named.items() if name not in SHARED}
    lead = next(iter(lists))
    for name, value in named.items():
        if name in SHARED and isinstance(value, (list, tuple)):
            remedy = "give one, or call the op leaf by leaf"
            refuse(TypeError, op, name, "one for all leaves", type(value).__name__, remedy)
    for name, value in lists.items():
        if not isinstance(value, (list, tuple)):
            expected = f"a list of tensors, one for each leaf of {lead}"
            remedy = "give every argument of a leaf as a list, or none"
            refuse(TypeError, op, name, expected, type(value).__name__, remedy)
    count = len(lists[lead])
    for name, value in lists.items():
        if len(value) != count:
            expected = f"{count} tensors, one for each leaf of {lead}"
            remedy = "give every leaf its own, in the same order"
            refuse(ValueError, op, name, expected, str(len(value)), remedy)
    if count == 0:
        remedy = "leave out a call that has nothing to do"
        refuse(ValueError, op, lead, "at least one tensor", "0", remedy)


def _check_same_device(op: str, name: str, t: Tensor, first: Tensor) -> None:
    if t.device != first.device:
        expected = f"{first.device}, the device of leaf 0"
        remedy = f"move it with {name}.to({first.device})"
        refuse(ValueError, op, name, expected, str(t.device), remedy)


def _check_overlap_of_leaves(op: str, memories: Sequence[Arguments]) -> None:
    seen: list[tuple[str, int, Tensor, bool]] = []
    for k, arguments in enumerate(memories):
        mine = [(n, t, w) for n, t, w in arguments if t is not None and n not in SHARED]
        for name, tensor, written in mine:
            for other, leaf, other_tensor, other_written in seen:
                if (written or other_written) and meet(tensor, other_tensor):
                    refuse_overlap(f"{op}: leaf {k}", name, f"{other} of leaf {leaf}")
        seen += [(name, k, tensor, written) for name, tensor, written in mine]
