"""Named scopes for the parts of a solve, reported to listeners: profiler ranges, for example.

A function gets its name where it is defined. Without a listener it remains the plain function, so
that scopes cost nothing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar

import revdeq_kernels as rk

F = TypeVar("F", bound=Callable[..., Any])
Name = str | Callable[..., str]
Open = Callable[[str], AbstractContextManager[Any]]

KERNEL = "kernel: "
CHECK = "check"
NOT_IN_PLACE = ("quantize", "dequantize", "residual")

_named: list[tuple[str, str, Name]] = [
    (rk.__name__, op, KERNEL + op) for op in rk.__all__ if op.endswith("_") or op in NOT_IN_PLACE
]
"""Module, path in it, and the name of the scope. The solver calls the ops as ``rk.update_``."""

_lock = threading.Lock()
_listeners: list[Open] = []
_replaced = ExitStack()  # restores the functions


def scope(name: Name) -> Callable[[F], F]:
    """Give a function or method a scope. The name may depend on the arguments."""

    def register(function: F) -> F:
        _named.append((function.__module__, function.__qualname__, name))
        return function

    return register


def half_step(second: int, what: str) -> Callable[..., str]:
    """The scope's name in half step 2 n + second; without an n, in the first step."""

    def name(pair: object, n: object, *rest: object, **options: object) -> str:
        return f"half step {2 * n + second if isinstance(n, int) else second}: {what}"

    return name


@contextmanager
def listening(around: Open) -> Iterator[None]:
    """Inside, enter ``around(name)`` around every scope in the whole process.

    Functions with scopes are replaced in their modules and classes while there is a listener.
    """
    with _lock:
        if not _listeners:
            _replace_all()
        _listeners.append(around)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(around)
            if not _listeners:
                _replaced.close()


def _replace_all() -> None:
    for module, path, name in _named:
        owner: Any = sys.modules[module]
        *parents, attribute = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        function = getattr(owner, attribute)
        _replaced.callback(setattr, owner, attribute, function)
        setattr(owner, attribute, _within(name, function))


def _within(name: Name, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        scope_name = name if isinstance(name, str) else name(*args, **options)
        with ExitStack() as stack:
            for around in tuple(_listeners):
                stack.enter_context(around(scope_name))
            return function(*args, **options)

    return call
