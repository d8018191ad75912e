"""Modules in another dtype for a while, with the same parameters and buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def converted(modules: Sequence[nn.Module], convert: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Meanwhile the parameters and buffers of these modules, the same objects, hold other data."""
    tensors = {id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}
    kept = [(tensor, tensor.data) for tensor in tensors.values()]
    try:
        for tensor, data in kept:
            tensor.data = convert(data)
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data
