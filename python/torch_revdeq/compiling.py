"""The solver under torch.compile: a graph break, and the solve itself outside of the compiler.

What torch.compile is asked to compile around a solve is compiled; the solve runs as it always does,
and so does f, unless f was compiled by itself.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def not_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """As ``torch.compiler.disable``, without its import: a second that eager users are spared."""
    disabled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kw: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:  # then nothing is being compiled
            return function(*args, **kw)
        if not disabled:
            import torch

            disabled.append(torch.compiler.disable(function))  # type: ignore[arg-type]
        return disabled[0](*args, **kw)

    return call
