"""Which tensors cannot be leaves of a state, and what to pass instead."""

from __future__ import annotations

from dataclasses import is_dataclass
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn


def plain_leaf(name: str, leaf: Any) -> Tensor:
    """The leaf as a plain tensor: a state computed from a subclass would not keep the subclass.

    TypeError, with a specific remedy, for a leaf that is not a strided floating-point tensor.
    """
    expected = "floating-point tensors as leaves"
    if not isinstance(leaf, Tensor):
        got, remedy = f"{type(leaf).__name__}", _instead_of_an_object(leaf)
    elif leaf.is_nested:
        got = "a nested tensor"
        remedy = "pass its .values(), and its offsets in args, or pad it (.to_padded_tensor(0.0))"
    elif leaf.layout != torch.strided:
        expected, got, remedy = "strided tensors as leaves", str(leaf.layout), "pass .to_dense()"
    elif leaf.is_complex():
        got, remedy = str(leaf.dtype), "pass torch.view_as_real(...), and view_as_complex inside f"
    elif leaf.is_quantized:
        got, remedy = str(leaf.dtype), "pass .dequantize()"
    elif not leaf.is_floating_point():
        got, remedy = str(leaf.dtype), "pass what is not part of the state in args"
    elif _is_fake(leaf) or isinstance(leaf, nn.Parameter):
        return leaf
    elif _dispatch_of(type(leaf)) is _dispatch_of(Tensor):
        return leaf.as_subclass(Tensor)
    else:
        expected, got = "plain tensors as leaves", type(leaf).__name__
        remedy = "pass the tensor that it wraps, as .to_local() of a DTensor"
    raise TypeError(f"{name}: expected {expected}, got {got}; {remedy}")


def _dispatch_of(kind: Any) -> Any:
    return kind.__torch_dispatch__


def _is_fake(leaf: Tensor) -> bool:
    """Whether it represents a tensor in a trace."""
    return type(leaf).__module__.startswith("torch._subclasses")


def _instead_of_an_object(leaf: Any) -> str:
    kind = type(leaf).__name__
    if type(leaf).__module__ == "numpy":
        return "pass torch.as_tensor(...)"
    if leaf is None or isinstance(leaf, (str, Number)):
        return "pass what is not part of the state in args"
    pytree = "torch.utils._pytree"
    how = (
        f"register it, {pytree}.register_dataclass({kind})"
        if is_dataclass(leaf)
        else f"register it, {pytree}.register_pytree_node({kind}, ...)"
    )
    return f"{how}, or pass its tensors in a dict or tuple"
