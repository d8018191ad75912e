"""Ctrl-C and SIGTERM: a run finishes its current update, writes a checkpoint, and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .errors import RunError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and the signal that batch systems and `kill` send."""


class InterruptedRunError(RunError):
    """A run was interrupted, and its checkpoint is written.

    Attributes:
        status: exit status of the process, the same as a shell reports for the signal.
    """

    def __init__(self, number: int | None, update: int, folder: Path) -> None:
        super().__init__(
            f"interrupted after update {update}; checkpoint written to {folder / 'checkpoints'}; "
            f"continue with --out {folder} --resume"
        )
        self.status = 128 + (number or signal.SIGINT)


class Interruption:
    """Records whether a signal has asked the run to end.

    Attributes:
        signal: the signal's number, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def watched(self, *, wanted: bool = True) -> Iterator[None]:
        """Record the first signal in this block; a second one has its usual effect.

        Args:
            wanted: False changes no signal handler: several processes would each end after a
                different update. Nor does any thread except the main one, where Python delivers
                signals.
        """
        if not wanted or threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        # Shells start background jobs, and nohup starts any, with signals that stay ignored.
        # None: a handler that is not Python's, which could not be put back.
        left = (signal.SIG_IGN, None)
        before = {n: handler for n, handler in handlers.items() if handler not in left}

        def note(number: int, _: FrameType | None) -> None:
            self.signal = number
            restore()

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            restore()
