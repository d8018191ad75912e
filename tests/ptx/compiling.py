"""A process whose Triton compiles: in that of the tests its interpreter may be on, for good."""

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
    """Yields what calls a function of a module, with its arguments, in such a process.

    All calls go to the same one, where what was compiled is kept. An error there is raised here.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin) as pool:
        yield lambda function, *args, **kw: pool.submit(function, *args, **kw).result()


def _begin() -> None:
    """Before triton is imported: nothing that this module imports does so."""
    os.environ["TRITON_INTERPRET"] = "0"
    import torch

    torch.set_num_threads(1)
    atexit.register(gc.freeze)  # for seconds the collector would look through all of torch
