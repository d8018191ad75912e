"""Two GPUs that are none: streams whose work waits until someone does, captures, a current device.

What code asks of torch.cuda about devices is answered from here, so that a test without a GPU can
see which device was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


class Stream:
    """Work in its order, done only when it is waited for."""

    def __init__(self) -> None:
        self.pending: list[Callable[[], None]] = []

    def run_until(self, mark: Callable[[], None]) -> None:
        """Do everything up to this piece of work."""
        while mark in self.pending:
            self.pending.pop(0)()


class Event:
    """A place in a stream."""

    def __init__(self, gpus: TwoGpus) -> None:
        self.gpus, self.stream = gpus, Stream()

    def record(self, stream: Stream | None = None) -> None:
        """In the current stream of the current device if none is named, as torch does."""
        self.stream = self.gpus.current_stream() if stream is None else stream
        self.stream.pending.append(self._mark)

    def query(self) -> bool:
        """Whether the stream has come to it."""
        return self._mark not in self.stream.pending

    def synchronize(self) -> None:
        """Wait for it."""
        self.stream.run_until(self._mark)

    def _mark(self) -> None:
        pass


class TwoGpus:
    """The first is current; `captured` are those whose current stream a CUDA graph records."""

    def __init__(self) -> None:
        self.current, self.captured = 0, set[int]()
        self.streams = [Stream(), Stream()]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer in the place of torch.cuda."""
        monkeypatch.setattr(torch, "get_device_module", lambda device: self)
        monkeypatch.setattr(torch.cuda, "device", self.device)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", self.is_capturing)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        """Make it current for a while."""
        before, self.current = self.current, device.index
        try:
            yield
        finally:
            self.current = before

    def is_capturing(self) -> bool:
        """Of the current device alone, as torch answers."""
        return self.current in self.captured

    def current_stream(self, device: torch.device | None = None) -> Stream:
        """The stream of that device, or of the current one."""
        return self.streams[self.current if device is None else device.index]

    def Event(self) -> Event:  # noqa: N802
        """As ``torch.cuda.Event``."""
        return Event(self)


class OnGpu:
    """A number on a GPU: a copy of it is work of that device's stream."""

    def __init__(self, gpus: TwoGpus, device: torch.device, number: float) -> None:
        self.gpus, self.device, self.number = gpus, device, number
        self.dtype = torch.float64

    def __float__(self) -> float:
        return self.number


class PinnedMemory:
    """What ``torch.empty(pin_memory=True)`` gives: a number is stale until the copy was done."""

    def __init__(self, *shape: Any, **options: Any) -> None:
        assert options["pin_memory"]
        self.number = -1.0

    def copy_(self, value: OnGpu, *, non_blocking: bool) -> None:
        """Sent to the stream of the device that holds the value."""
        assert non_blocking
        pending = value.gpus.streams[value.device.index].pending
        pending.append(lambda: setattr(self, "number", value.number))

    def __float__(self) -> float:
        return self.number
