"""Errors for the default z0 of a layer: f cannot take it, or returns another shape."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from .flat_function import OtherShapeError

_MISFIT = (
    r"size of tensor|shapes? cannot be multiplied|must match|[Ee]xpected size|normalized_shape"
    r"|channels|shape '.*' is invalid|[Ss]izes of tensors|size mismatch|[Ii]ncompatible shapes"
    r"|[Ee]xpected \S*D |\dD input|must be a \dD|[Ee]xpected input|not broadcastable"
    r"|expanded size|dimension size|does not broadcast|should contain \d+ elements|inconsistent"
    r"|does not match (the )?(weight|size|shape|length|broadcast)|equal size|of the size expected"
    r"|same (dtype|number of|shape|size)|must be equal to|divisible by|multiply up to the size"
    r"|(not enough|too many) values to unpack|must be tuple of Tensors"
)
"""How torch words errors about mismatched shapes or dtypes, and Python errors about unpacking a
state that is a single tensor."""

_OF_A_STATE = (
    "z0: ",
    "f: expected a result with the structure",
    "f: expected a result of a tensor",
)
"""Beginnings of the solver's own errors that another z0 may fix."""


def about_start(z0: Any, error: Exception) -> Exception | None:
    """The error to raise where the layer chose z0 itself; None if z0 is not the cause."""
    if isinstance(error, OtherShapeError):
        return _other_start(z0, error.shapes)
    if type(error) not in (RuntimeError, ValueError, TypeError):
        return None
    text = str(error)
    ours = re.match(r"\w+: expected", text) is not None
    if not (text.startswith(_OF_A_STATE) if ours else re.search(_MISFIT, text)):
        return None
    return type(error)(
        f"{error}; RevDEQ used zeros like its first input, of shape {_shapes(z0)}, as z0: if the "
        "state of f has another shape, structure or dtype, pass z0="
    )


def _other_start(z0: Any, returned: Sequence[tuple[int, ...]]) -> ValueError:
    """The error if f ran and returned other shapes, so that the right z0 is known."""
    shapes = ", ".join(map(str, returned))
    start = f"torch.zeros{shapes}" if len(returned) == 1 else f"leaves of shape {shapes}"
    device = next(leaf.device for leaf in pytree.tree_leaves(z0))
    if len(returned) == 1 and device.type != "cpu":
        start = f"torch.zeros({shapes}, device='{device}')"
    return ValueError(
        f"z0: expected the shape that f returns, {shapes}, got the default of RevDEQ, zeros like "
        f"its first input, of shape {_shapes(z0)}; pass z0={start} in the call, or have f return "
        "the shape of its state"
    )


def _shapes(z0: Any) -> str:
    leaves = [leaf for leaf in pytree.tree_leaves(z0) if isinstance(leaf, Tensor)]
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
