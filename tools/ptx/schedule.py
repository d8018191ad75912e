"""Scheduling: which threads run next.

Diverged threads form groups, each with its own position in the code. The group at the lowest
position runs first, so that groups meet again where their paths join. An instruction that a warp or
block executes together waits until all of its threads have arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from tools.ptx.errors import Fault
from tools.ptx.instructions.registry import Step
from tools.ptx.types import Array

LIMIT = 10_000_000
"""The maximum number of instructions of a set of blocks; more count as an endless loop."""


@dataclass(frozen=True)
class Branch:
    """A jump to `target` for threads with `taken` (None: all)."""

    target: int
    taken: Callable[[], Array] | None


@dataclass(frozen=True)
class Meeting:
    """An instruction that all threads of a `unit` execute together."""

    unit: str


@dataclass(frozen=True)
class Wait:
    """An instruction that suspends threads until `ready` holds for them."""

    ready: Callable[[], Array]


class Threads(Protocol):
    """The interface that a machine must have."""

    count: int
    mask: Array | None
    block: Array

    def complete(self, mask: Array, unit: str) -> Array:
        """The threads of `mask` whose entire unit is in `mask`."""
        ...


@dataclass
class Program:
    """Compiled code: a step and a text per position; `control` holds branches, joins and waits."""

    steps: list[Step] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    control: dict[int, Branch | Meeting | Wait] = field(default_factory=dict)
    stops: list[int] = field(default_factory=list)
    """For each position, the next position at or after it that is in `control`."""

    def add(self, text: str, step: Step, control: Branch | Meeting | Wait | None) -> None:
        """Add an instruction; the step of a branch does nothing."""
        if control:
            self.control[len(self.steps)] = control
        self.steps.append(step)
        self.texts.append(text)

    def finish(self) -> None:
        """Compute `stops` after all instructions were added."""
        stop = len(self.steps)
        self.stops = [stop] * (stop + 1)
        for position in reversed(range(stop)):
            stop = position if position in self.control else stop
            self.stops[position] = stop

    def meets(self, unit: str) -> bool:
        """Whether there is an instruction that a `unit` executes together."""
        return any(isinstance(c, Meeting) and c.unit == unit for c in self.control.values())


class Groups:
    """Groups of threads by position: groups that can run, and groups that wait for others."""

    def __init__(self, threads: Threads, program: Program) -> None:
        self.threads, self.program = threads, program
        self.ready: dict[int, Array | None] = {0: None}
        self.waiting: dict[int, Array] = {}
        self.suspended: dict[int, Array] = {}
        self.run_instructions = 0
        self.run_by_threads = 0

    def add(self, position: int, mask: Array | None) -> None:
        """Continue these threads at `position`."""
        if position == len(self.program.steps):
            return
        if position in self.ready:
            other = self.ready[position]
            assert mask is not None and other is not None
            mask = mask | other
            mask = None if mask.all() else mask
        self.ready[position] = mask

    def next_group(self) -> tuple[int | None, int]:
        """Take the group at the lowest position; returns its position and the next group's."""
        position = min(self.ready)
        self.threads.mask = self.ready.pop(position)
        return position, min(self.ready, default=len(self.program.steps))

    def straight(self, position: int, stop: int) -> None:
        """Run the instructions of the current group up to `stop`."""
        at, steps = position, self.program.steps
        try:
            for at in range(position, stop):
                steps[at]()
        except Fault as fault:
            text = self.program.texts[at]
            raise Fault(str(fault) if text in str(fault) else f"{fault}: {text}") from fault
        mask, number = self.threads.mask, stop - position
        self.run_by_threads += number * (
            self.threads.count if mask is None else int(np.count_nonzero(mask))
        )
        self.run_instructions += number
        if self.run_instructions > LIMIT:
            raise Fault(f"does not end within {LIMIT} instructions")

    def branch(self, position: int, branch: Branch) -> int | None:
        """Where the current group continues; None if it was split."""
        if branch.taken is None:
            return branch.target
        taken, mask = branch.taken(), self.threads.mask
        if mask is None:
            mask = np.ones(1, np.bool_)
        taken, rest = mask & taken, mask & ~taken
        if not rest.any():
            return branch.target
        if not taken.any():
            return position + 1
        self.add(branch.target, taken)
        self.add(position + 1, rest)
        return None

    def meet(self, position: int, meeting: Meeting) -> int | None:
        """Run the units that are complete among the current group and those waiting here."""
        mask = self.threads.mask
        if mask is not None:
            if position in self.waiting:
                mask = mask | self.waiting.pop(position)
            complete = self.threads.complete(mask, meeting.unit)
            rest = mask & ~complete
            if rest.any():
                self.waiting[position] = rest
                if not complete.any():
                    return None
            self.threads.mask = None if complete.all() else complete
        self.straight(position, position + 1)
        return position + 1

    def wait(self, position: int, wait: Wait) -> int | None:
        """Continue with the threads of the group that are ready; suspend the others."""
        mask, ready = self.threads.mask, wait.ready()
        rest = ~ready if mask is None else mask & ~ready
        if rest.any():
            self.suspended[position] = rest | self.suspended.get(position, False)
            ready = ready if mask is None else mask & ready
            if not ready.any():
                return None
            self.threads.mask = ready
        self.straight(position, position + 1)
        return position + 1

    def resume(self) -> bool:
        """Resume suspended threads when no others can run; False if none can."""
        for position, mask in self.suspended.items():
            wait = self.program.control[position]
            assert isinstance(wait, Wait)
            self.threads.mask = None if mask.all() else mask
            if (wait.ready() & mask).any():
                self.ready[position] = self.threads.mask
                del self.suspended[position]
                return True
        return False

    def stuck(self) -> Fault:
        """The fault of threads that wait for others that never arrive."""
        stopped = self.waiting | self.suspended
        places = [self.program.texts[position] for position in stopped]
        alive, block = np.logical_or.reduce(list(stopped.values())), self.threads.block
        what = "wait for each other at different places"
        if np.isin(block[~alive], block[alive]).any():
            what = "wait for others of their block, which ended"
        return Fault(f"threads {what}: {', '.join(places)}")


def run(threads: Threads, program: Program) -> int:
    """Run the program to its end; returns how many instructions its threads executed."""
    groups = Groups(threads, program)
    while groups.ready or groups.resume():
        here, until = groups.next_group()
        while here is not None and here < until:
            stop = min(program.stops[here], until)
            if stop > here:
                groups.straight(here, stop)
                here = stop
                continue
            control = program.control[here]
            if isinstance(control, Branch):
                here = groups.branch(here, control)
            elif isinstance(control, Meeting):
                here = groups.meet(here, control)
            else:
                here = groups.wait(here, control)
        if here is not None:
            groups.add(here, threads.mask)
    if groups.waiting or groups.suspended:
        raise groups.stuck()
    return groups.run_by_threads
