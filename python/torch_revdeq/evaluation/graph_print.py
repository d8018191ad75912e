"""The print of an evaluation's graph, which must be the same in both passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeAlias

_type_name = attrgetter("__class__.__name__")


@lru_cache(maxsize=1024)
def _settings_reader(kind: type) -> Callable[[Any], Any] | None:
    """Reads the settings of nodes of a kind: an index, a dimension; None if they have none.

    Tensors also have a name with ``_raw`` in front. Sizes and strides follow from the operands.
    The node of a solve inside f tells its settings by ``settings_of``.
    """
    function = getattr(kind, "_forward_cls", None)  # of a Python class
    if function is not None:
        return getattr(function, "settings_of", None)
    names = {name for name in dir(kind) if name.startswith(("_saved_", "_raw_saved_"))}
    found = [n for n in names if n[0:5] != "_raw_" and f"_raw{n}" not in names and "_sym_" not in n]
    return attrgetter(*sorted(found)) if found else None


def _settings(node: Any) -> str:
    """A node's settings, apart from floats: computed from a state, they differ by its rounding."""
    read = _settings_reader(type(node))
    if read is None:
        return ""
    found = read(node)
    values = found if type(found) is tuple else (found,)
    return str([value for value in values if type(value) is not float])


Print: TypeAlias = tuple[int, int]
"""The print (a hash) of a graph: of its nodes and edges, and of the leaves where it ends.

A node stands there with its settings that are no tensors. What an operation takes from a tensor, a
mask or an index, is not part of it, nor what a custom Function or a hook keeps.
"""


def print_of(nodes: Sequence[Any], edges: Sequence[int], keys: Sequence[int]) -> Print:
    """From a graph's nodes and edges, and from keys for its leaves.

    The keys are the same in the backward pass.
    """
    return hash((*map(_type_name, nodes), *map(_settings, nodes), *edges)), hash(tuple(keys))
