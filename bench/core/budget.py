"""The time that a run may take: it ends on time whatever else the machine does.

Each benchmark gets a share of the time that is left. One that reaches the end of its share stops,
and keeps the rows that it has; what a benchmark leaves over goes to those after it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Of the time of a run, kept for the figures and the report.
RESERVE = 0.2
# How much more than its share a benchmark may take: most need less, and the weights are estimates.
GENEROUS = 1.5

# Seconds between two signals.
AGAIN = 3.0


class OutOfTimeError(BaseException):
    """Raised in the middle of a benchmark; no handler of Exception takes it for a failed row."""


@dataclass(frozen=True)
class Budget:
    """`minutes` from `begin`, a reading of time.monotonic(), on; None is no limit."""

    minutes: float | None
    begin: float

    def share(self, weights: Sequence[float]) -> float | None:
        """Seconds for the first of the benchmarks that remain, which have these weights."""
        if self.minutes is None:
            return None
        left = self.begin + 60 * self.minutes * (1 - RESERVE) - time.monotonic()
        return max(left, 0.0) * min(1.0, GENEROUS * weights[0] / sum(weights))


@contextlib.contextmanager
def limit(seconds: float | None) -> Iterator[None]:
    """Raise OutOfTimeError in this block after so many seconds; None never does.

    By a signal, which only the main thread takes: elsewhere there is no limit. It comes again and
    again, because Python drops an exception that is raised in a destructor or a weakref's callback.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    over = False

    def stop(*_: object) -> None:
        if not over:
            raise OutOfTimeError

    before, hook = signal.signal(signal.SIGALRM, stop), sys.unraisablehook
    sys.unraisablehook = lambda args: None if args.exc_type is OutOfTimeError else hook(args)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), AGAIN)
    try:
        yield
    finally:
        over = True  # first: a signal that comes from here on stops nothing
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.unraisablehook = hook
