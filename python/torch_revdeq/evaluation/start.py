"""The start that a layer chooses: what to say where f cannot take it, or returns another state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from .flat_function import OtherShapeError

_MISFIT = re.compile(
    r"size of tensor|shapes? cannot be multiplied|must match|[Ee]xpected size|normalized_shape"
    r"|channels|shape '.*' is invalid|[Ss]izes of tensors|size mismatch|[Ii]ncompatible shapes"
    r"|[Ee]xpected \S*D |\dD input|must be a \dD|[Ee]xpected input|not broadcastable"
    r"|expanded size|dimension size|does not broadcast|should contain \d+ elements|inconsistent"
    r"|does not match (the )?(weight|size|shape|length|broadcast)|equal size|of the size expected"
    r"|same (dtype|number of|shape|size)|must be equal to|divisible by|multiply up to the size"
    r"|(not enough|too many) values to unpack|must be tuple of Tensors"
)
"""How torch words an operation on tensors whose shapes or dtypes do not fit together, and Python
the unpacking of a state that is one tensor."""

_OF_A_STATE = (
    "z0: ",
    "f: expected a result with the structure",
    "f: expected a result of a tensor",
)
"""How the solver's own errors begin that another start may be the answer to."""


def about_start(z0: Any, error: Exception) -> Exception | None:
    """What an error says where the layer began at z0 by itself; None where that is no reason."""
    if isinstance(error, OtherShapeError):
        return _other_start(z0, error.shapes)
    if type(error) not in (RuntimeError, ValueError, TypeError):
        return None
    text = str(error)
    ours = re.match(r"\w+: expected", text) is not None
    if not (text.startswith(_OF_A_STATE) if ours else _MISFIT.search(text)):
        return None
    return type(error)(
        f"{error}; RevDEQ began at zeros_like of its first input, of shape {_shapes(z0)}: if the "
        "state of f has another shape, structure or dtype, pass z0="
    )


def _other_start(z0: Any, returned: Sequence[tuple[int, ...]]) -> ValueError:
    """f ran, and returned a state of other shapes: the start that it takes is known."""
    shapes = ", ".join(map(str, returned))
    start = f"torch.zeros{shapes}" if len(returned) == 1 else f"leaves of shape {shapes}"
    device = next(leaf.device for leaf in pytree.tree_leaves(z0))
    if len(returned) == 1 and device.type != "cpu":
        start = f"torch.zeros({shapes}, device='{device}')"
    return ValueError(
        f"z0: expected a start of the shape that f returns, {shapes}, got zeros_like of the first "
        f"input, of shape {_shapes(z0)}, at which RevDEQ begins by itself; pass z0={start} in the "
        "call, or have f return the shape of its state"
    )


def _shapes(z0: Any) -> str:
    leaves = [leaf for leaf in pytree.tree_leaves(z0) if isinstance(leaf, Tensor)]
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
