"""Python interface of recorder.cpp: observes the launches of csrc/cuda's host code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from tools.ptx.cuda.compiled import host_library, names

NAMESPACE = "revdeq_recorded"
"""The namespace in torch.ops with the ops of csrc/cuda for CPU tensors."""


class _LaunchRecord(ctypes.Structure):
    """As in recorder.cpp."""

    _fields_ = (
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
    )


_OnLaunch = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_LaunchRecord))
_OnMemory = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)


@dataclass(frozen=True)
class Launch:
    """A launch in progress."""

    kernel: str  # the readable name
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    arguments: Callable[[list[int]], list[bytes]]
    """The bytes of the kernel's parameters with these sizes."""


@contextmanager
def recording(
    on_launch: Callable[[Launch], None], on_memory: Callable[[int, int], None]
) -> Iterator[None]:
    """Context manager: report launches, and (address, bytes) that host code allocates.

    An exception in `on_launch` makes the launch fail, and is raised again at the end of the block.
    """
    errors: list[BaseException] = []

    def caught(function: Callable[..., None], *arguments: Any) -> int:
        """Whether there was an error; exceptions cannot pass through C++."""
        try:
            function(*arguments)
        except BaseException as error:
            errors.append(error)
        return len(errors)

    launched = _OnLaunch(lambda record: caught(lambda: on_launch(_launch(record.contents))))
    allocated = _OnMemory(lambda address, size: caught(on_memory, address, size) if size else 0)
    _library().listen(launched, allocated)
    try:
        yield
    except RuntimeError:
        if not errors:
            raise
    finally:
        _library().listen(None, None)
    if errors:
        raise errors[0]


def _launch(record: _LaunchRecord) -> Launch:
    def arguments(sizes: list[int]) -> list[bytes]:
        return [ctypes.string_at(record.arguments[k], size) for k, size in enumerate(sizes)]

    grid, block = tuple(record.grid), tuple(record.block)
    return Launch(_name(record.kernel.decode()), grid, block, record.shared_bytes, arguments)


@cache
def _name(mangled: str) -> str:
    return names([mangled])[0]


@cache
def _library() -> ctypes.CDLL:
    path = str(host_library())
    torch.ops.load_library(path)
    return ctypes.CDLL(path)
