"""Arguments of ops on lists of leaves: select one leaf's, and check all leaves together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from torch import Tensor

from .checks import Check, Memory, check_overlap, refuse, refuse_overlap
from .memory import meet
from .roles import Arguments

Leaves = TypeVar("Leaves", Tensor, Sequence[Tensor])
"""A tensor, or a list with one tensor per leaf of the state."""


def leaf_of(values: Any, k: int) -> Any:
    """The values (a tuple or a dict) with each list replaced by its element `k`."""
    if isinstance(values, dict):
        return {name: leaf_of((value,), k)[0] for name, value in values.items()}
    return tuple(value[k] if isinstance(value, (list, tuple)) else value for value in values)


def check_leaves(
    check: Check, op: str, arguments: Arguments, args: tuple[Any, ...], kw: dict[str, Any]
) -> None:
    """Check the arguments of an op on lists: their lengths, each leaf, and overlapping memory."""
    named = dict(zip((a.name for a in arguments), args, strict=False)) | kw
    named = {name: value for name, value in named.items() if value is not None}
    shared = {a.name for a in arguments if a.shared}
    written = {a.name for a in arguments if a.written}
    lead = arguments[0].name
    _check_counts(op, lead, named, shared)
    memories: list[Memory] = []
    for k in range(len(named[lead])):
        label = f"{op}: leaf {k}"
        memories.append(check(label, *leaf_of(args, k), **leaf_of(kw, k)))
        check_overlap(label, memories[-1], written)
        _check_same_device(label, lead, named[lead][k], named[lead][0])
    _check_overlap_of_leaves(op, memories, shared, written)


def _check_counts(op: str, lead: str, named: dict[str, Any], shared: Collection[str]) -> None:
    lists = {name: value for name, value in named.items() if name not in shared}
    for name, value in named.items():
        if name in shared and isinstance(value, (list, tuple)):
            expected = "a single value for all leaves"
            remedy = "pass one, or call the op once per leaf"
            refuse(TypeError, op, name, expected, type(value).__name__, remedy)
    for name, value in lists.items():
        if not isinstance(value, (list, tuple)):
            expected = f"a list of tensors, one for each leaf of {lead}"
            remedy = "pass all per-leaf arguments as lists, or none"
            refuse(TypeError, op, name, expected, type(value).__name__, remedy)
    count = len(lists[lead])
    for name, value in lists.items():
        if len(value) != count:
            expected = f"{count} tensors, one for each leaf of {lead}"
            remedy = "pass one tensor per leaf, in the same order"
            refuse(ValueError, op, name, expected, str(len(value)), remedy)
    if count == 0:
        remedy = "skip the call if there is nothing to do"
        refuse(ValueError, op, lead, "at least one tensor", "0", remedy)


def _check_same_device(op: str, name: str, t: Tensor, first: Tensor) -> None:
    if t.device != first.device:
        expected = f"{first.device}, the device of leaf 0"
        remedy = f"move it with {name}.to({first.device})"
        refuse(ValueError, op, name, expected, str(t.device), remedy)


def _check_overlap_of_leaves(
    op: str, memories: Sequence[Memory], shared: Collection[str], written: Collection[str]
) -> None:
    seen: list[tuple[str, int, Tensor]] = []
    for k, memory in enumerate(memories):
        mine = [(name, t) for name, t in memory if t is not None and name not in shared]
        for name, tensor in mine:
            for other, leaf, other_tensor in seen:
                if (name in written or other in written) and meet(tensor, other_tensor):
                    refuse_overlap(f"{op}: leaf {k}", name, f"{other} of leaf {leaf}")
        seen += [(name, k, tensor) for name, tensor in mine]
