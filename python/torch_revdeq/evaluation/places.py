"""Where in a tree of tensors a number is, in words, for error messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..runtime.magnitude import magnitude


def leaf_names(name: str, structure: Any, count: int) -> list[str]:
    """How to write each leaf of a tree in Python: z0['a'][0], or z0 itself for a single leaf."""
    if structure is None:
        return [name if count == 1 else f"leaf {i} of {name}" for i in range(count)]
    tree = pytree.tree_unflatten(list(range(count)), structure)
    paths, _ = pytree.tree_flatten_with_path(tree)
    return [name + pytree.keystr(path) for path, _ in paths]


class _Star:
    def __repr__(self) -> str:
        return "*"


def outline(structure: Any) -> str:
    """A tree's structure on one line, with * for each leaf: {'a': *, 'b': [*, *]}."""
    try:
        tree = pytree.tree_unflatten([_Star()] * structure.num_leaves, structure)
    except Exception:  # a type of the user's that takes tensors only
        tree = structure
    return " ".join(repr(tree).split())


def first_not_finite(seen: Mapping[str, Sequence[Tensor]], structure: Any) -> str | None:
    """The first tensor with NaN or Inf, the index, and how many there are; None: none."""
    for name, leaves in seen.items():
        for i, leaf in enumerate(leaves):
            bad = ~torch.isfinite(leaf.detach())
            count = int(bad.sum())
            if count:
                at = bad.nonzero()[0].tolist()
                full = leaf_names(name, structure, len(leaves))[i]
                value = float(leaf.detach()[tuple(at)])
                return f"{value} in {full}{_index(at)}, {_of(count, leaf)}"
    return None


def largest(seen: Mapping[str, Sequence[Tensor]], structure: Any) -> str:
    """The largest number, its tensor and its index."""
    sizes = {
        (name, i): float(magnitude(leaf))
        for name, leaves in seen.items()
        for i, leaf in enumerate(leaves)
        if leaf.numel()
    }
    name, i = max(sizes, key=lambda place: sizes[place])
    leaf = seen[name][i].detach()
    at = (leaf.abs() == sizes[name, i]).nonzero()[0].tolist()
    full = leaf_names(name, structure, len(seen[name]))[i]
    return f"{float(leaf[tuple(at)]):.3g} in {full}{_index(at)}"


def _index(at: list[int]) -> str:
    return f" at index {at}" if at else ""


def _of(count: int, leaf: Tensor) -> str:
    others = "the only one" if count == 1 else f"the first of {count}"
    return f"{others} in a tensor of {leaf.numel()}"
