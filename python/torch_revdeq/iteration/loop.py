"""The forward iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from .beta import BetaSchedule
from .stopping import Stopping


class Forward(Protocol):
    """What the loop needs from a pair."""

    @property
    def read_y(self) -> list[Tensor]:
        """What f reads of y."""
        ...

    @property
    def read_z(self) -> list[Tensor]:
        """What f reads of z."""
        ...

    def update_y(self, n: int, f: list[Tensor]) -> None:
        """y <- (1 - beta) y + beta f(z)."""

    def update_z(self, n: int, f: list[Tensor]) -> None:
        """z <- (1 - beta) z + beta f(y)."""


def iterate(
    pair: Forward,
    first: list[Tensor],
    evaluate: Callable[[int, Sequence[Tensor]], list[Tensor]],
    schedule: BetaSchedule,
    stopping: Stopping,
    after_step: Callable[[int], None] | None = None,
) -> int:
    """Run the solve, starting with `first`, which is f(z0); returns the number of steps.

    `after_step` is called after each step, with the number of steps taken so far.
    """
    f = first
    for n in range(schedule.max_steps):
        last = n + 1 == schedule.max_steps
        if n > 0:
            f = evaluate(2 * n, pair.read_z)
        pair.update_y(n, f)
        f = evaluate(2 * n + 1, pair.read_y)
        due = stopping.due(n, last)
        if due or stopping.watch is not None:
            stopping.look(pair.read_y, f, due=due)
        pair.update_z(n, f)
        if after_step is not None:
            after_step(n + 1)
        if stopping.watch is not None:
            stopping.watch.after_step(n + 1, lambda: pair.read_z)
        if due and not last and stopping.ends(pair.read_y, f, exact=schedule.exact):
            return n + 1
    return schedule.max_steps
