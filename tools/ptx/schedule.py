"""Which threads run what next.

Threads that diverge form groups, each with its own position in the code. The group at the lowest
position runs, so that groups meet again where their ways join. An instruction that a warp or a
block runs as one waits until all of its threads have come there.
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
"""Instructions that one set of blocks may run: more are taken as a loop without an end."""


@dataclass(frozen=True)
class Branch:
    """A jump to `target`, where `taken` holds (None: always)."""

    target: int
    taken: Callable[[], Array] | None


@dataclass(frozen=True)
class Meeting:
    """An instruction that all threads of a `unit` run as one."""

    unit: str


@dataclass(frozen=True)
class Wait:
    """An instruction that suspends threads until `ready` holds for them."""

    ready: Callable[[], Array]


class Threads(Protocol):
    """What is asked of a machine."""

    count: int
    mask: Array | None
    block: Array

    def complete(self, mask: Array, unit: str) -> Array:
        """Those threads of `mask` whose whole unit is in it."""
        ...


@dataclass
class Program:
    """Compiled code: a step and a text for each position; `control` has what is not just run."""

    steps: list[Step] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    control: dict[int, Branch | Meeting | Wait] = field(default_factory=dict)
    stops: list[int] = field(default_factory=list)
    """For each position the next one, from there on, that `control` has."""

    def add(self, text: str, step: Step, control: Branch | Meeting | Wait | None) -> None:
        """Add an instruction; the step of a branch does nothing."""
        if control:
            self.control[len(self.steps)] = control
        self.steps.append(step)
        self.texts.append(text)

    def finish(self) -> None:
        """Find the stops, when all has been added."""
        stop = len(self.steps)
        self.stops = [stop] * (stop + 1)
        for position in reversed(range(stop)):
            stop = position if position in self.control else stop
            self.stops[position] = stop

    def meets(self, unit: str) -> bool:
        """Whether there is an instruction for which a `unit` meets."""
        return any(isinstance(c, Meeting) and c.unit == unit for c in self.control.values())


class Groups:
    """Groups of threads by position: those that can run, and those that wait for others."""

    def __init__(self, threads: Threads, program: Program) -> None:
        self.threads, self.program = threads, program
        self.ready: dict[int, Array | None] = {0: None}
        self.waiting: dict[int, Array] = {}
        self.suspended: dict[int, Array] = {}
        self.run_instructions = 0
        self.run_by_threads = 0

    def add(self, position: int, mask: Array | None) -> None:
        """These threads go on at `position`."""
        if position == len(self.program.steps):
            return
        if position in self.ready:
            other = self.ready[position]
            assert mask is not None and other is not None
            mask = mask | other
            mask = None if mask.all() else mask
        self.ready[position] = mask

    def next_group(self) -> tuple[int | None, int]:
        """Take the group at the lowest position; returns that, and where the next group is."""
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
        """Where the current group goes on; None if it has been divided."""
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
        """Run what the current group and those that wait here are complete for."""
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
        """Go on with those of the current group that are ready; the others are suspended."""
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
        """Let suspended threads go on, when no others can; False if none of them can, either."""
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
        """The fault of threads that wait for others that do not come."""
        stopped = self.waiting | self.suspended
        places = [self.program.texts[position] for position in stopped]
        alive, block = np.logical_or.reduce(list(stopped.values())), self.threads.block
        what = "wait for each other at different places"
        if np.isin(block[~alive], block[alive]).any():
            what = "wait for others of their block, which ended"
        return Fault(f"threads {what}: {', '.join(places)}")


def run(threads: Threads, program: Program) -> int:
    """Run the program to its end; returns how many instructions its threads ran."""
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
