"""The user's f as a function from a list of leaves to a list of leaves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .called import check_keywords
from .leaves import plain_leaf
from .places import outline


class OtherShapeError(ValueError):
    """f's first evaluation returned other shapes than those of z0."""

    def __init__(self, message: str, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__(message)
        self.shapes = shapes


class FlatFunction:
    """f(z, *args, **kwargs) with z and the tensors in its arguments as flat lists.

    What f returns must have the structure, shapes and device of z0. The first call fixes the
    dtypes: under autocast f may return another dtype than it reads. aux (`has_aux`) follows the
    state in the list and must keep the form of the first call. No tensor is kept.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        leaves: Sequence[Tensor],
        structure: Any,
        *,
        has_aux: bool = False,
        pass_step: bool = False,
    ) -> None:
        """Note the form of the state; ``take_args`` notes that of the arguments."""
        self.f = f
        self.shapes = [leaf.shape for leaf in leaves]
        self.device = leaves[0].device
        self.structure = structure
        self.plain = structure == LEAF and not has_aux
        self.dtypes: list[torch.dtype] | None = None
        self.has_aux, self.pass_step = has_aux, pass_step
        self.aux_structure: Any = None
        self.aux_forms: list[tuple[torch.Size, torch.dtype]] = []
        self.constants: list[Any] = []
        self.simple = False  # the common case: tensors in, a tensor out

    def take_args(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
    ) -> list[Tensor]:
        """The tensors in the arguments. Everything else in them is kept."""
        check_keywords(kwargs)
        self.plain_args = not kwargs and all(isinstance(arg, Tensor) for arg in args)
        self.simple = self.plain and self.plain_args and not self.pass_step
        if self.plain_args:
            return list(args)
        if self.pass_step and kwargs and "step" in kwargs:
            raise ValueError(
                "kwargs: expected no 'step' with pass_step=True, got one; pass_step passes f that "
                "keyword: rename yours, or leave pass_step out"
            )
        values, self.args_structure = pytree.tree_flatten((args, dict(kwargs or {})))
        self.places = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
        self.constants = [None if isinstance(value, Tensor) else value for value in values]
        return [values[i] for i in self.places]

    def __call__(
        self, leaves: Sequence[Tensor], tensors: Sequence[Tensor], step: int = 0
    ) -> list[Tensor]:
        """The leaves of f(z, *args), for z of the given leaves and args of the given tensors."""
        if self.simple:
            out = [self.f(leaves[0], *tensors)]
            self.check_one(out)
            return out
        result = self._called(self.unflatten(leaves), tensors, step)
        aux: list[Tensor] = []
        if self.has_aux:
            result, aux = self._parted(result)
        out, structure = pytree.tree_flatten(result)
        if structure != self.structure:
            raise TypeError(
                f"f: expected a result with the structure of z0, {outline(self.structure)}, got "
                f"{outline(structure)}; return the new state in the same form as z"
            )
        self.check(out)
        return [*out, *aux]

    def check_one(self, out: list[Any]) -> None:
        """Check the result of a ``simple`` f: ValueError or TypeError."""
        value = out[0]
        if not (
            type(value) is Tensor
            and self.dtypes is not None
            and value.shape == self.shapes[0]
            and value.dtype == self.dtypes[0]
            and value.device == self.device
        ):
            self.check(out)

    def unflatten(self, leaves: Sequence[Tensor]) -> Any:
        """Leaves in the structure of z0."""
        return pytree.tree_unflatten(leaves, self.structure)

    def unflatten_aux(self, leaves: Sequence[Tensor]) -> Any:
        """Leaves in the structure of aux."""
        return pytree.tree_unflatten(leaves, self.aux_structure)

    def held(self) -> str | None:
        """The type of an argument that may hold tensors and is not a pytree."""
        for value in self.constants:
            if not isinstance(value, (*_SIMPLE, nn.Module)) and not inspect.isroutine(value):
                return type(value).__name__
        return None

    def _called(self, state: Any, tensors: Sequence[Tensor], step: int) -> Any:
        more = {"step": step} if self.pass_step else {}
        if self.plain_args:
            return self.f(state, *tensors, **more)
        values = self._values(tensors)
        args, kwargs = pytree.tree_unflatten(values, self.args_structure)
        try:
            result = self.f(state, *args, **kwargs, **more)
            if self.dtypes is None:  # the first time
                self._check_given(values, (args, kwargs))
            return result
        except TypeError as error:
            if not kwargs or "unexpected keyword argument" not in str(error):
                raise
            raise TypeError(
                f"kwargs: expected keywords that f takes, got {', '.join(kwargs)} ({error}); a "
                "layer passes unknown keywords on to f: pass a positional argument, or wrap f"
            ) from error

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments and keywords of f, with these tensors in them."""
        if self.plain_args:
            return tuple(tensors), {}
        return pytree.tree_unflatten(self._values(tensors), self.args_structure)

    def _values(self, tensors: Sequence[Tensor]) -> list[Any]:
        values = list(self.constants)
        for place, tensor in zip(self.places, tensors, strict=True):
            values[place] = tensor
        return values

    def _check_given(self, values: list[Any], given: Any) -> None:
        """RuntimeError if f changed a container in its arguments: each call gets a new one."""
        now, structure = pytree.tree_flatten(given)
        same = structure == self.args_structure
        if not same or any(a is not b for a, b in zip(now, values, strict=True)):
            raise RuntimeError(
                "f: expected not to modify the containers in its arguments, got a change of a list "
                "or dict; each evaluation gets a new copy, so keep the value in an attribute of f, "
                "or return it in aux"
            )

    def _parted(self, result: Any) -> tuple[Any, list[Tensor]]:
        """The state, and the leaves of aux."""
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                f"f: expected a result (z, aux) with has_aux=True, got {type(result).__name__}"
                f"{f' of {len(result)}' if isinstance(result, tuple) else ''}; return a pair, or "
                "leave has_aux out"
            )
        leaves, structure = pytree.tree_flatten(result[1])
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"f: expected tensors as leaves of aux, got {type(leaf).__name__}; make it a "
                    "tensor, or leave it out of aux"
                )
        forms = [(leaf.shape, leaf.dtype) for leaf in leaves]
        if self.aux_structure is None:
            self.aux_structure, self.aux_forms = structure, forms
        elif structure != self.aux_structure or forms != self.aux_forms:
            raise ValueError(
                f"f: expected aux as in the first evaluation, {outline(self.aux_structure)} of "
                f"{_described(self.aux_forms)}, got {outline(structure)} of {_described(forms)}; "
                "return the same form of aux each time"
            )
        return result[0], leaves

    def check(self, out: list[Any]) -> None:
        """Check what f returned against the form of the state; the first time note the dtypes."""
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
            where = "" if self.structure == LEAF else f" in leaf {i}"
            paired = isinstance(value, tuple) and len(value) == 2 and not self.has_aux
            error = (ValueError if isinstance(value, Tensor) else TypeError)(
                f"f: expected a result of {expected}{where}, got {got}; f must map the state to a "
                "state of the same shapes, dtypes and device, in every evaluation"
                f"{', and (z, aux) goes with has_aux=True' if paired else ''}"
            )
            shapes = [tuple(other.shape) for other in out if isinstance(other, Tensor)]
            if expected.startswith("the shape") and self.dtypes is None and len(shapes) == len(out):
                raise OtherShapeError(str(error), shapes)
            raise error
        if self.dtypes is None:
            self.dtypes = [value.dtype for value in out]


_SIMPLE = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, torch.Size)


def _described(forms: Sequence[tuple[torch.Size, torch.dtype]]) -> str:
    return ", ".join(f"{tuple(shape)} {dtype}" for shape, dtype in forms) or "no tensors"


LEAF = pytree.tree_structure(0)
"""The structure of a state that is one tensor."""


def flatten(name: str, value: Any) -> tuple[list[Tensor], Any]:
    """The leaves of a state and its structure; an error for an invalid state."""
    leaves, structure = ([value], LEAF) if type(value) is Tensor else pytree.tree_flatten(value)
    if not leaves:
        raise TypeError(
            f"{name}: expected a tensor or a pytree of tensors, got {value!r}; pass one"
        )
    for i, leaf in enumerate(leaves):
        plain = type(leaf) is Tensor and leaf.is_floating_point()
        if not plain or leaf.layout != torch.strided or leaf.is_nested:
            leaves[i] = plain_leaf(name, leaf)
        if leaf.device != leaves[0].device:
            raise ValueError(
                f"{name}: expected all leaves on one device, got {leaves[0].device} and "
                f"{leaf.device}; move them together"
            )
    if leaves[0].device.type == "mps":
        raise ValueError(
            f"{name}: expected on a device with float64, in which residuals and checks are "
            "computed, got mps, which does not have it; move the state and f to the CPU"
        )
    return leaves, structure
