"""The self check: after a backward pass the states must be back where they began.

If they are, the evaluations of the way back were those of the way forward, and the gradient just
computed is the solve's. On a CPU the check raises at once. Elsewhere nothing waits: the gradients
become NaN on the device if the check fails, and the error is raised at the next solve, at
``Solution.verify()``, or, as a last resort, reported at exit.
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
    """The way back did not meet the states of the way forward: the gradient would be wrong."""


class RangeError(RuntimeError):
    """A value left the range of an exact state: the solution would be wrong."""


TOLERANCE = {getattr(torch, name): allowed for name, allowed in dtypes.TOLERANCE.items()}
"""How far from the start a float state may come back, by its dtype."""


@dataclass(eq=False)
class PendingCheck:
    """A check whose outcome is still on its way from a device."""

    failed: Tensor  # bool, no dimensions
    error: Callable[[], RuntimeError]
    outcome: HostCopy = field(init=False)

    def __post_init__(self) -> None:
        """Send the outcome to the host."""
        self.outcome = HostCopy(self.failed)

    def raise_if_failed(self) -> None:
        """Wait for the outcome; raise its error if it failed."""
        if self.outcome.read():
            raise self.error()


@dataclass
class DeferredChecks:
    """The checks of all solves that nobody has read yet."""

    waiting: list[PendingCheck] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, pending: PendingCheck) -> None:
        """Keep a check until its outcome is known."""
        with self.lock:
            self.waiting.append(pending)

    def poll(self, *, wait: bool = False) -> None:
        """Raise the first error that has arrived; with `wait`, that is still to arrive."""
        if not self.waiting:  # the common case, and no harm if it is just changing
            return
        with self.lock:
            ready = [p for p in self.waiting if wait or p.outcome.here()]
            self.waiting = [p for p in self.waiting if not any(p is other for other in ready)]
        for pending in ready:
            pending.raise_if_failed()

    def forget(self, pending: PendingCheck) -> None:
        """Drop a check whose outcome someone has read."""
        with self.lock:
            self.waiting = [p for p in self.waiting if p is not pending]


deferred_checks = DeferredChecks()


def deferred(device: torch.device) -> bool:
    """Whether checks on this device are read later."""
    return device.type != "cpu"


def report_check(
    failed: Tensor, error: Callable[[], RuntimeError], poisoned: Sequence[Tensor]
) -> PendingCheck | None:
    """Deal with a check: raise here on a CPU; elsewhere spoil what it is about and raise later.

    `failed` has one element, which is not 0 if it failed.
    """
    if not deferred(failed.device):
        if bool(failed):
            raise error()
        return None
    failed = failed.reshape(()) != 0
    spoil(poisoned, failed)
    pending = PendingCheck(failed, error)
    if not capturing(failed.device):  # a graph's own checks are there after a replay, not before
        deferred_checks.add(pending)
    return pending


def spoil(tensors: Sequence[Tensor], failed: Tensor) -> None:
    """Make the tensors NaN if `failed`, of one element, is not 0. Nothing waits for it."""
    for tensor in tensors:
        tensor.masked_fill_(failed.reshape(()) != 0, float("nan"))


def _report_at_exit() -> None:
    try:
        deferred_checks.poll(wait=True)
    except RuntimeError as error:
        print(f"torch_revdeq: a check failed and was never read: {error}", file=sys.stderr)


atexit.register(_report_at_exit)
