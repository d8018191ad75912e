"""How many cores other programs take while a row is measured, as Linux counts CPU time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from bench.core import machine

PROC = Path("/proc")
# Below so many seconds the counts, in ticks of 10 ms, say nothing: the former answer holds.
SHORTEST = 0.5


class Meter:
    """Between two calls of `others`: the cores that this process and its children did not use."""

    def __init__(self) -> None:
        self.before = _sample()
        self.answer: float | None = None

    def others(self) -> float | None:
        """Cores that others kept busy since the last call; None where the system does not tell.

        Cores that this process may not use do not count, as far as they suffice for the others.
        """
        now = _sample()
        if self.before is None or now is None or now[0] - self.before[0] < SHORTEST:
            return self.answer
        elapsed, busy, own = (b - a for a, b in zip(self.before, now, strict=True))
        elsewhere = (os.cpu_count() or 1) - machine.usable_cores()
        self.before = now
        self.answer = round(max(0.0, (busy - own) / elapsed - elsewhere), 2)
        return self.answer


def _sample() -> tuple[float, float, float] | None:
    """The clock, CPU seconds of everything, and those of this process and its descendants."""
    try:
        words = (PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        ticks = [int(word) for word in words[1:9]]  # user nice system idle iowait irq softirq steal
        busy = sum(ticks) - ticks[3] - ticks[4]
        own = sum(_ticks(pid) for pid in _family(os.getpid()))
    except (OSError, ValueError, IndexError):
        return None
    per_second = os.sysconf("SC_CLK_TCK")
    return time.monotonic(), busy / per_second, own / per_second


def _family(pid: int) -> Iterator[int]:
    """The process and its living descendants."""
    yield pid
    for children in (PROC / str(pid) / "task").glob("*/children"):
        try:
            found = children.read_text(encoding="ascii").split()
        except OSError:  # a thread that has ended
            continue
        for child in found:
            yield from _family(int(child))


def _ticks(pid: int) -> int:
    """CPU time of a process and of its children that have ended; 0 where it has just ended."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15])
