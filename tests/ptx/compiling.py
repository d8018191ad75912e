"""A process in which Triton compiles; in the tests' process its interpreter may be on for good."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


@contextlib.contextmanager
def compiling_process() -> Iterator[Callable[..., Any]]:
    """Yields a function that calls a function of a module in such a process.

    All calls go to the same process, which keeps compiled kernels. Its errors are raised here.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin) as pool:
        yield lambda function, *args, **kw: pool.submit(function, *args, **kw).result()


def _begin() -> None:
    """Runs before triton is imported, which no import of this module does."""
    os.environ["TRITON_INTERPRET"] = "0"
    import torch

    torch.set_num_threads(1)
    atexit.register(gc.freeze)  # garbage collection would traverse all of torch for seconds
