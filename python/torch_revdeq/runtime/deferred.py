"""Checks of a solve: a backward pass must recover the initial state, exact states stay in range.

If the initial state is recovered, f was evaluated as in the forward pass, and the gradient is
right. On a CPU a failed check raises at once. Elsewhere nothing waits: the gradients become NaN on
the device, and the error is raised by the next solve or ``Solution.verify()``, or, as a last
resort, reported at exit.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from revdeq_kernels import dtypes

from .cuda_graphs import capturing
from .host_copy import HostCopy


class ReconstructionError(RuntimeError):
    """Reversing the iteration did not recover the initial state: the gradient would be wrong."""


class RangeError(RuntimeError):
    """A number left the range of an exact state: the solution would be wrong."""


TOLERANCE = {getattr(torch, name): allowed for name, allowed in dtypes.TOLERANCE.items()}
"""The relative error allowed for the reconstructed initial state, by dtype."""


@dataclass(eq=False, repr=False)
class PendingCheck:
    """A check whose outcome has not arrived from the device."""

    failed: Tensor  # bool, no dimensions
    error: Callable[[], RuntimeError]
    outcome: HostCopy = field(init=False)

    def __post_init__(self) -> None:
        """Start copying the outcome to the host."""
        self.outcome = HostCopy(self.failed)

    def raise_if_failed(self) -> None:
        """Wait for the outcome; raise its error if it failed."""
        if self.outcome.read():
            raise self.error()


@dataclass(eq=False, repr=False)
class DeferredChecks:
    """The pending checks of all solves."""

    waiting: list[PendingCheck] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, pending: PendingCheck) -> None:
        """Keep a check until its outcome is known."""
        with self.lock:
            self.waiting.append(pending)

    def poll(self, *, wait: bool = False) -> None:
        """Raise the first error that has arrived; with `wait`, wait for all of them."""
        if not self.waiting:  # the common case; a race here is harmless
            return
        with self.lock:
            ready = [p for p in self.waiting if wait or p.outcome.here()]
            self.waiting = [p for p in self.waiting if not any(p is other for other in ready)]
        for pending in ready:
            pending.raise_if_failed()

    def forget(self, pending: PendingCheck) -> None:
        """Drop a check whose outcome has been read."""
        with self.lock:
            self.waiting = [p for p in self.waiting if p is not pending]


deferred_checks = DeferredChecks()


def deferred(device: torch.device) -> bool:
    """Whether checks on this device are read later."""
    return device.type != "cpu"


def report_check(
    failed: Tensor, error: Callable[[], RuntimeError], poisoned: Sequence[Tensor]
) -> PendingCheck | None:
    """Report a check: raise here on a CPU; elsewhere make the tensors NaN and raise later.

    `failed` has one element, which is nonzero if the check failed.
    """
    if not deferred(failed.device):
        if bool(failed):
            raise error()
        return None
    failed = failed.reshape(()) != 0
    spoil(poisoned, failed)
    pending = PendingCheck(failed, error)
    if not capturing(failed.device):  # checks in a graph have an outcome only after a replay
        deferred_checks.add(pending)
    return pending


def spoil(tensors: Sequence[Tensor], failed: Tensor) -> None:
    """Make the tensors NaN if `failed`, of one element, is nonzero, without waiting for it."""
    for tensor in tensors:
        tensor.masked_fill_(failed.reshape(()) != 0, float("nan"))


def _report_at_exit() -> None:
    try:
        deferred_checks.poll(wait=True)
    except RuntimeError as error:
        print(f"torch_revdeq: a check failed and was never read: {error}", file=sys.stderr)


atexit.register(_report_at_exit)
