"""The user's f, seen as a function from a list of leaves to a list of leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .leaves import refuse_leaf


class Mapping:
    """f(z, *args) with z and the tensors of args as flat lists.

    The structure, shapes and device of what f returns are held to those of z0. The first call
    settles the dtypes: under autocast f may return another than it reads. No tensor is kept.
    """

    def __init__(self, f: Callable[..., Any], leaves: Sequence[Tensor], structure: Any) -> None:
        """Note the form of the state; ``take_args`` that of the arguments."""
        self.f = f
        self.shapes = [leaf.shape for leaf in leaves]
        self.device = leaves[0].device
        self.structure = structure
        self.plain = structure == LEAF
        self.dtypes: list[torch.dtype] | None = None

    def take_args(self, args: tuple[Any, ...]) -> list[Tensor]:
        """The tensors among the arguments. What else they hold is kept."""
        self.plain_args = all(isinstance(arg, Tensor) for arg in args)
        if self.plain_args:
            return list(args)
        values, self.args_structure = pytree.tree_flatten(args)
        self.places = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
        self.constants = [None if isinstance(value, Tensor) else value for value in values]
        return [values[i] for i in self.places]

    def __call__(self, leaves: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """The leaves of f(z, *args), for z of the given leaves and args of the given tensors."""
        state = leaves[0] if self.plain else pytree.tree_unflatten(leaves, self.structure)
        result = self.f(state, *self._args(tensors))
        if self.plain:
            out = [result]
        else:
            out, structure = pytree.tree_flatten(result)
            if structure != self.structure:
                raise TypeError(
                    f"f: expected a result with the structure of z0, {self.structure}, got "
                    f"{structure}; return the new state in the form in which it came"
                )
        self._check(out)
        return out

    def unflatten(self, leaves: Sequence[Tensor]) -> Any:
        """Leaves put together as z0 is."""
        return pytree.tree_unflatten(leaves, self.structure)

    def _args(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        if self.plain_args:
            return tensors
        values = list(self.constants)
        for place, tensor in zip(self.places, tensors, strict=True):
            values[place] = tensor
        return pytree.tree_unflatten(values, self.args_structure)

    def _check(self, out: list[Any]) -> None:
        if self.plain and self.dtypes is not None and type(out[0]) is Tensor:  # the common case
            value = out[0]
            if (
                value.shape == self.shapes[0]
                and value.dtype == self.dtypes[0]
                and value.device == self.device
            ):
                return
        for i, (value, shape) in enumerate(zip(out, self.shapes, strict=True)):
            if not isinstance(value, Tensor):
                expected, got = f"a tensor of shape {tuple(shape)}", type(value).__name__
            elif value.shape != shape:
                expected, got = f"the shape of z0, {tuple(shape)}", str(tuple(value.shape))
            elif value.device != self.device:
                expected, got = f"the device of z0, {self.device}", str(value.device)
            elif self.dtypes is not None and value.dtype != self.dtypes[i]:
                expected = f"{self.dtypes[i]}, as in the first evaluation"
                got = str(value.dtype)
            else:
                continue
            where = "" if self.plain else f" in leaf {i}"
            raise (ValueError if isinstance(value, Tensor) else TypeError)(
                f"f: expected a result of {expected}{where}, got {got}; f must map the state to a "
                "state of the same shapes, dtypes and device, in every evaluation"
            )
        if self.dtypes is None:
            self.dtypes = [value.dtype for value in out]


LEAF = pytree.tree_structure(0)
"""The structure of a state that is one tensor."""


def flatten(name: str, value: Any) -> tuple[list[Tensor], Any]:
    """The leaves of a state, and how they hang together; an error for what can be no state."""
    leaves, structure = ([value], LEAF) if type(value) is Tensor else pytree.tree_flatten(value)
    if not leaves:
        raise TypeError(
            f"{name}: expected a tensor or a pytree of tensors, got {value!r}; pass one"
        )
    for leaf in leaves:
        plain = type(leaf) is Tensor and leaf.is_floating_point()
        if not plain or leaf.layout != torch.strided or leaf.is_nested:
            refuse_leaf(name, leaf)
        if leaf.device != leaves[0].device:
            raise ValueError(
                f"{name}: expected all leaves on one device, got {leaves[0].device} and "
                f"{leaf.device}; move them together"
            )
    if leaves[0].device.type == "mps":
        raise ValueError(
            f"{name}: expected on a device with float64, in which residuals and checks are "
            "computed, got mps, which has none; move the state and f to the CPU"
        )
    return leaves, structure
