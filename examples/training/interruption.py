"""Ctrl-C and SIGTERM: a run ends after the update that it is in, by a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .errors import RunError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what batch systems and `kill` send."""


class InterruptedRunError(RunError):
    """A run was asked to end, and its checkpoint is written.

    Attributes:
        status: of the process, as a shell gives it to one that the signal ended.
    """

    def __init__(self, number: int | None, update: int, folder: Path) -> None:
        super().__init__(
            f"interrupted after update {update}, which {folder / 'checkpoints'} has; go on with "
            f"--out {folder} --resume"
        )
        self.status = 128 + (number or signal.SIGINT)


class Interruption:
    """Whether the run has been asked to end.

    Attributes:
        signal: by what; None: it has not.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def watched(self, *, wanted: bool = True) -> Iterator[None]:
        """Note the first signal within; a second one ends the process as it would have done.

        Args:
            wanted: False leaves the signals alone: of many processes, each would end after another
                update. So does a thread other than the main one, which Python gives no signals.
        """
        if not wanted or threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        # Shells start background jobs, and nohup starts any, with signals that stay ignored.
        before = {n: handler for n, handler in handlers.items() if handler is not signal.SIG_IGN}

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
