"""The tensors that f's modules hold as parameters, so that the backward pass reads the same ones.

``torch.func.functional_call`` replaces them temporarily and usually has restored them when
backward() is called, where f would then read the module's own parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor, nn

from .modules import is_managed

Slot = tuple[dict[str, Any], str]
"""A dict of a module's parameters or buffers, and a name in it."""


def leaf_again(tensor: Tensor, *, needs: bool, computed: bool) -> Tensor:
    """A leaf with the tensor's values, which f gets instead when it is evaluated again.

    `computed`: it is where f got a computed tensor in the forward pass. A solve inside f takes such
    tensors as arguments, read or not, so it must take the leaf likewise to make the same graph.
    """
    leaf = tensor.detach().requires_grad_(needs)
    if computed and needs:
        leaf.stands_for_computed = True  # type: ignore[attr-defined]
    return leaf


def is_computed(tensor: Tensor) -> bool:
    """Whether it was computed from others, or stands for such a tensor."""
    return tensor.grad_fn is not None or (
        tensor.requires_grad
        and type(tensor) is not nn.Parameter  # most: a missing attribute takes long to find
        and hasattr(tensor, "stands_for_computed")
    )


class Standing:
    """The parameters of f's modules in the forward pass."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """Note them."""
        found = [(m, m.__dict__.get("_parameters")) for m in modules]
        kept = [(m, p) for m, p in found if p and type(p) in (dict, OrderedDict)]
        self.modules = [m for m, _ in kept]
        self.spaces: list[dict[str, Any]] = [p for _, p in kept]
        self.tensors = self._now()
        self.sizes = [*map(len, self.spaces)]

    def _now(self) -> list[Tensor | None]:
        return [*chain.from_iterable(map(dict.values, self.spaces))]

    def computed(self) -> list[tuple[nn.Module, str, Tensor]]:
        """The slots that hold computed tensors that require grad."""
        return [
            (module, name, tensor)
            for (module, name), tensor in zip(self._slots(), self.tensors, strict=False)
            if tensor is not None and is_computed(tensor) and not _is_flat_view(tensor)
        ]

    def _slots(self) -> list[tuple[nn.Module, str]]:
        rows = zip(self.modules, self.spaces, strict=True)
        return [(module, name) for module, space in rows for name in space]

    def in_place(self) -> bool:
        """Whether all of them are still in place."""
        now = self._now()
        return len(now) == len(self.tensors) and all(map(is_, now, self.tensors))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Put them back where they were replaced."""
        with put(self._moved()):
            yield

    def _moved(self) -> list[tuple[dict[str, Any], str, Any]]:
        """Where another tensor is now, except in sharded modules, which exchange their own."""
        found: list[tuple[dict[str, Any], str, Any]] = []
        at = 0
        for module, space, size in zip(self.modules, self.spaces, self.sizes, strict=True):
            noted, at = self.tensors[at : at + size], at + size
            if len(space) != size or is_managed(module):
                continue
            for (name, now), then in zip(space.items(), noted, strict=True):
                if now is not then and not (_is_distributed(now) or _is_distributed(then)):
                    found.append((space, name, then))
        return found


@contextmanager
def put(rows: Sequence[tuple[dict[str, Any], str, Any]]) -> Iterator[None]:
    """Put each tensor in its place, inside the context."""
    before = [(space, name, space[name]) for space, name, _ in rows]
    try:
        for space, name, tensor in rows:
            space[name] = tensor
        yield
    finally:
        for space, name, tensor in before:
            space[name] = tensor


def _is_distributed(tensor: Tensor | None) -> bool:
    """A DTensor, or a view of a flattened FSDP parameter, which FSDP exchanges."""
    return tensor is not None and (hasattr(tensor, "placements") or _is_flat_view(tensor))


def _is_flat_view(tensor: Tensor) -> bool:
    base = tensor._base
    return base is not None and hasattr(base, "_is_flat_param")
