"""The scopes of a solve as ranges of torch.profiler and of NVTX, and those of a loop without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import record_function

from bench.solver.methods import Run
from torch_revdeq.runtime import scopes
from torch_revdeq.runtime.scopes import KERNEL


@contextmanager
def named(name: str, device: torch.device) -> Iterator[None]:
    """One range."""
    with record_function(name):
        if device.type != "cuda":
            yield
            return
        torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()


@contextmanager
def ranges(run: Run, device: torch.device) -> Iterator[None]:
    """Name what `run` does, inside."""
    around = partial(named, device=device)
    with ExitStack() as stack:
        stack.enter_context(scopes.listening(around))
        for owner, name, scope in _of_the_run(run):
            wrapped = _within(around, scope, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, wrapped))
        yield


def _of_the_run(run: Run) -> Iterator[tuple[Any, str, Callable[[], str]]]:
    """What is not the solver's: both passes, and in a loop f and the half step."""
    yield Run, "forward", lambda: "forward"
    yield torch.autograd, "grad", lambda: "backward"
    if run.method.adjoint is None:
        calls = count()  # a loop does not number its half steps
        yield run.model.f, "forward", lambda: f"half step {next(calls) % (2 * run.steps)}: f"
        yield torch, "lerp", lambda: f"{KERNEL}lerp"


def _within(
    around: Callable[[str], Any], name: Callable[[], str], function: Callable[..., Any]
) -> Callable[..., Any]:
    @wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        with around(name()):
            return function(*args, **options)

    return wrapped
