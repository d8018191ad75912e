"""Two fake GPUs: streams whose work runs only when it is waited for, captures, a current device.

Queries of torch.cuda about devices are answered here, so that a test without a GPU can see which
device was queried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


class Stream:
    """Work in order, executed only when it is waited for."""

    def __init__(self) -> None:
        self.pending: list[Callable[[], None]] = []

    def run_until(self, mark: Callable[[], None]) -> None:
        """Execute everything up to this piece of work."""
        while mark in self.pending:
            self.pending.pop(0)()


class Event:
    """A place in a stream."""

    def __init__(self, gpus: TwoGpus) -> None:
        self.gpus, self.stream = gpus, Stream()

    def record(self, stream: Stream | None = None) -> None:
        """Record in the given stream, or in the current device's current stream, like torch."""
        self.stream = self.gpus.current_stream() if stream is None else stream
        self.stream.pending.append(self._mark)

    def query(self) -> bool:
        """Whether the stream has reached it."""
        return self._mark not in self.stream.pending

    def synchronize(self) -> None:
        """Wait for it."""
        self.stream.run_until(self._mark)

    def _mark(self) -> None:
        pass


class TwoGpus:
    """The first is current; `captured` are devices whose current stream a CUDA graph captures."""

    def __init__(self) -> None:
        self.current, self.captured = 0, set[int]()
        self.streams = [Stream(), Stream()]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the functions of torch.cuda."""
        monkeypatch.setattr(torch, "get_device_module", lambda device: self)
        monkeypatch.setattr(torch.cuda, "device", self.device)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", self.is_capturing)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        """Make a device current within a block."""
        before, self.current = self.current, device.index
        try:
            yield
        finally:
            self.current = before

    def is_capturing(self) -> bool:
        """Only for the current device, like torch."""
        return self.current in self.captured

    def current_stream(self, device: torch.device | None = None) -> Stream:
        """The stream of the given or current device."""
        return self.streams[self.current if device is None else device.index]

    def Event(self) -> Event:  # noqa: N802
        """Like ``torch.cuda.Event``."""
        return Event(self)


class OnGpu:
    """A number on a GPU: copying it is work in that device's stream."""

    def __init__(self, gpus: TwoGpus, device: torch.device, number: float) -> None:
        self.gpus, self.device, self.number = gpus, device, number
        self.dtype = torch.float64

    def __float__(self) -> float:
        return self.number


class PinnedMemory:
    """Replaces ``torch.empty(pin_memory=True)``: a value is stale until the copy has run."""

    def __init__(self, *shape: Any, **options: Any) -> None:
        assert options["pin_memory"]
        self.number = -1.0

    def copy_(self, value: OnGpu, *, non_blocking: bool) -> None:
        """Enqueue the copy in the stream of the device that holds the value."""
        assert non_blocking
        pending = value.gpus.streams[value.device.index].pending
        pending.append(lambda: setattr(self, "number", value.number))

    def __float__(self) -> float:
        return self.number
