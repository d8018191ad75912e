"""Hooks of the tensors that f reads, disabled while f is evaluated again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor


class _Masked:
    """Hooks that are disabled while a replay runs, counted over threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.taken: dict[int, tuple[int, Any, list[Any]]] = {}

    def take(self, hooks: Any) -> None:
        with self.lock:
            count, _, items = self.taken.get(id(hooks), (0, hooks, []))
            self.taken[id(hooks)] = (count + 1, hooks, [*items, *hooks.items()])
            hooks.clear()

    def give_back(self, hooks: Any) -> None:
        with self.lock:
            count, _, items = self.taken.pop(id(hooks))
            if count > 1:
                self.taken[id(hooks)] = (count - 1, hooks, items)
                return
            late = list(hooks.items())
            hooks.clear()
            hooks.update([*items, *late])


_masked = _Masked()


@contextmanager
def hooks_masked(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Disable tensor hooks inside: they are for the whole gradient, not for its parts."""
    hooked = [t._backward_hooks for t in tensors if t._backward_hooks]
    for hooks in hooked:
        _masked.take(hooks)
    try:
        yield
    finally:
        for hooks in hooked:
            _masked.give_back(hooks)
