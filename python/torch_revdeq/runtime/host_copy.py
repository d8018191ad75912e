"""Asynchronous copies of numbers from a device to the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .cuda_graphs import capturing


class HostCopy:
    """A one-element tensor, copied to the host after the work queued on the device."""

    def __init__(self, value: Tensor) -> None:
        """Start the copy. Nothing to do on a CPU; in a CUDA graph it is read from the device."""
        self._host, self._event = value, None
        if value.device.type != "cpu" and not capturing(value.device):
            module: Any = torch.get_device_module(value.device)
            self._host = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._host.copy_(value, non_blocking=True)
            self._event = module.Event()
            self._event.record(module.current_stream(value.device))  # not the current device's

    def here(self) -> bool:
        """Whether it can be read without waiting."""
        return self._event is None or self._event.query()

    def read(self) -> float:
        """The number; waits for it."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._host)
