"""The "reference" backend in plain PyTorch: the definition of every op under its name.

The definitions themselves are next to their ops, in ``ops/``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .core.op import OPS
from .ops.half_step import inverted, updated

__all__ = ["inverted", "updated"]


def __getattr__(name: str) -> Callable[..., Any]:
    if name not in OPS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return OPS[name].define


def __dir__() -> list[str]:
    return [name for name in OPS if "." not in name]
