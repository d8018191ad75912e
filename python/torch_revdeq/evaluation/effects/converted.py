"""Modules temporarily in another dtype, with the same parameter and buffer objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def converted(modules: Sequence[nn.Module], convert: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the modules' parameters and buffers, the same objects, hold converted data."""
    tensors = {id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}
    kept = [(tensor, tensor.data) for tensor in tensors.values()]
    try:
        for tensor, data in kept:
            tensor.data = convert(data)
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data
