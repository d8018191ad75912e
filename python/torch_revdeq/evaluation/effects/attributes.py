"""The plain attributes of f's modules, and whether an evaluation changed them.

Also objects, containers, closures and globals that are reachable from f, and which tensors are
registered as buffers. Writes into buffers, parameters, submodules and hooks are not checked here:
other rules apply to them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from .holdings import search
from .kept_state import Noted, contents_of

CONTAINERS = (list, dict, set, deque)
"""Types that f may change without assigning to the attribute."""

_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes of every module: its parameters, buffers, submodules, hooks, and training flag."""

_INSIDE = (*CONTAINERS, Tensor)

_EQUAL = frozenset((bool, int, float, complex, str, bytes, type(None)))
"""Types whose values are compared by equality."""

_MISSING = object()


class Attributes:
    """The current plain attributes of a module and its submodules."""

    def __init__(self, module: nn.Module) -> None:
        """Note them: the values, the versions of tensors, the elements of containers."""
        self.values: list[tuple[nn.Module, int, dict[str, Any]]] = []
        self.inside: list[tuple[nn.Module, str, Any, Any]] = []
        self.buffers: list[tuple[nn.Module, list[Any]]] = []
        below: list[nn.Module | None] = [module]
        seen = set()
        for each in below:  # grows in the loop
            if each is None or each in seen:
                continue
            seen.add(each)
            below.extend(each._modules.values())
            every = vars(each)
            if each._buffers:
                self.buffers.append((each, [*each._buffers.values()]))
            plain = {name: every[name] for name in every.keys() - _OF_TORCH}
            self.values.append((each, len(every), plain))
            for name, value in plain.items():
                if type(value) not in _EQUAL and isinstance(value, _INSIDE):
                    self.inside.append((each, name, value, _state(value)))

        held, own = search((module,)), {id(vars(each)) for each in seen}
        beyond = [space for space in held.spaces if id(space) not in own]
        self.beyond = Noted([*beyond, *held.containers, *held.cells, *held.slotted])

    def changed(self) -> str | None:
        """The first that changed, as "'name' in Module"; None if none did."""
        for module, before in self.buffers:
            for (name, now), old in zip(module._buffers.items(), before, strict=False):
                if now is not old:
                    return _named(module, name)
        for module, count, before in self.values:
            now = vars(module)
            names = before if len(now) == count else {*before, *(now.keys() - _OF_TORCH)}
            for name in names:
                old, new = before.get(name, _MISSING), now.get(name, _MISSING)
                if old is not new and not _equal(old, new) and not _is_computed(module, name):
                    return _named(module, name)
        for module, name, value, state in self.inside:
            inside = _state(value)
            if len(inside) != len(state) or not all(map(_same, inside, state)):
                return _named(module, name)
        return self._changed_beyond()

    def _changed_beyond(self) -> str | None:
        for place, then in self.beyond.changed():
            now = contents_of(place)
            if len(now) != len(then) or not all(map(_same, now, then)):
                names = list(place) if isinstance(place, dict) else []
                rows = zip(names, now, then, strict=False)
                name = next((repr(n) for n, a, b in rows if not _same(a, b)), "an element")
                return f"{name} in an object that f holds"
        return None


def _named(module: nn.Module, name: str) -> str:
    return f"{name!r} in {type(module).__name__}"


def _is_computed(module: nn.Module, name: str) -> bool:
    """Whether it is a weight that torch.nn.utils computes from a parameter before every call."""
    return any(name + end in module._parameters for end in ("_orig", "_g"))


def _state(value: Tensor | Collection[Any]) -> list[Any]:
    if isinstance(value, Tensor):
        return [0 if value.is_inference() else value._version]
    return [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)


def _same(a: Any, b: Any) -> bool:
    return a is b or _equal(a, b)


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and type(a) in _EQUAL and bool(a == b)
