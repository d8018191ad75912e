"""What the modules of f keep as plain attributes, and whether an evaluation changed it.

Parameters, buffers, submodules and hooks are not looked at: they have rules of their own. Nor is
what an attribute refers to, but for containers: the elements of a list, set or dict count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from operator import is_
from typing import Any

from torch import Tensor, nn

_OF_TORCH = frozenset(vars(nn.Module()))
"""What every module has: its parameters, buffers, submodules, hooks, and whether it trains."""

_EQUAL = (bool, int, float, complex, str, bytes)
"""Values that are the same where they are equal."""

_CONTAINERS = (list, dict, set, deque)


class Attributes:
    """The plain attributes of some modules, as they are now."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """Note them: the values, the versions of tensors, the elements of containers."""
        self.modules = [(module, dict(vars(module))) for module in modules]
        self.inside = [
            (module, name, value, _state(value))
            for module, values in self.modules
            for name, value in values.items()
            if (isinstance(value, Tensor) or type(value) in _CONTAINERS) and name not in _OF_TORCH
        ]

    def changed(self) -> str | None:
        """The first that is not as it was: "'name' in Module"; None if all are."""
        for module, before in self.modules:
            now = vars(module)
            if len(now) == len(before) and all(map(is_, now.values(), before.values())):
                continue
            for name in {**before, **now}:
                if name in _OF_TORCH or _is_computed(module, name):
                    continue
                if not _same(before.get(name, _MISSING), now.get(name, _MISSING)):
                    return _named(module, name)
        for module, name, value, state in self.inside:
            if not _is_computed(module, name) and not _unchanged(value, state):
                return _named(module, name)
        return None


_MISSING = object()


def _named(module: nn.Module, name: str) -> str:
    return f"{name!r} in {type(module).__name__}"


def _is_computed(module: nn.Module, name: str) -> bool:
    """Whether it is a weight that torch.nn.utils computes before every call from a parameter."""
    return any(name + end in module._parameters for end in ("_orig", "_g"))


def _state(value: Any) -> Any:
    if isinstance(value, Tensor):
        return 0 if value.is_inference() else value._version
    return _elements(value)


def _unchanged(value: Any, state: Any) -> bool:
    now = _state(value)
    if isinstance(value, Tensor):
        return bool(now == state)
    return len(now) == len(state) and all(map(_same, now, state))


def _elements(value: Collection[Any]) -> list[Any]:
    return [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and type(a) in _EQUAL and bool(a == b))
