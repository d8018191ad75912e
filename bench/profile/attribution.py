"""Where the time of a step went, read from its trace: every instant counts for one part.

On the host that is the part of the innermost range or operation that is open, so the parts add up
to the step. On a device it is the part that launched what runs.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch_revdeq.runtime.scopes import CHECK, KERNEL

Event = dict[str, Any]
Segment = tuple[float, float, str]

STEP = "step"
F, AGAIN, PRODUCTS = "f", "f again", "products"
HALF_STEPS, CHECKS, OTHER, GAPS = "half steps", "check", "other ops", "Python and gaps"
PARTS: tuple[str, ...] = (F, AGAIN, PRODUCTS, HALF_STEPS, CHECKS, OTHER, GAPS)
"""The parts; `bench/solver.md` says what they are."""

_OUTSIDE = (GAPS, OTHER)
_ENGINE = "autograd::engine::evaluate_function: "
_HALF_STEP = re.compile(r"half step \d+: (f again|f|product)")
_MICROSECOND = 1e-6
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Nodes:
    """Nodes of autograd's graph that are no part of f, by name."""

    solves: Collection[str] = ()  # each runs a whole backward pass
    half_steps: Collection[str] = ()  # each is the adjoint of one half step


@dataclass(frozen=True)
class Parts:
    """Seconds of one step by part, on the host and, where there is one, on the device."""

    step: float
    host: dict[str, float]
    device: dict[str, float] | None


def parts_of(events: Iterable[Event], nodes: Nodes) -> Parts:
    """The parts of the one step in a trace; ValueError where there is not one."""
    complete = [event for event in events if event.get("ph") == "X"]
    steps = [e for e in complete if e["name"] == STEP and e["cat"] == "user_annotation"]
    if len(steps) != 1:
        raise ValueError(
            f"trace: expected one range {STEP!r}, got {len(steps)}; profile one step at a time"
        )
    begin, end = steps[0]["ts"], steps[0]["ts"] + steps[0]["dur"]
    spans = [e for e in complete if e["cat"] in ("user_annotation", "cpu_op")]
    host = _segments(spans, begin, end, lambda event, outer: _part(event, outer, nodes))
    device = _device_segments(complete, host, begin, end)
    return Parts(
        (end - begin) * _MICROSECOND, _sums(host), None if device is None else _sums(device)
    )


def _part(event: Event, outer: str, nodes: Nodes) -> str:
    """The part of what is open, inside of something that counts for `outer`."""
    name: str = event["name"]
    if event["cat"] == "user_annotation":
        return _part_of_range(name, outer)
    if outer not in _OUTSIDE:
        return outer
    node = name.removeprefix(_ENGINE)
    if node in nodes.solves:
        return GAPS
    if not name.startswith(_ENGINE):
        return OTHER
    half_step = node in nodes.half_steps or node.startswith("LerpBackward")
    return HALF_STEPS if half_step else PRODUCTS


def _part_of_range(name: str, outer: str) -> str:
    if name == STEP:  # what began before it is no part of it
        return GAPS
    found = _HALF_STEP.fullmatch(name)
    if found and outer not in (F, AGAIN):  # f may hold a solve of its own
        return {"f": F, "f again": AGAIN, "product": PRODUCTS}[found[1]]
    if outer in _OUTSIDE and name.startswith(KERNEL):
        return HALF_STEPS
    if outer in _OUTSIDE and name == CHECK:
        return CHECKS
    return outer


def _segments(spans: Iterable[Event], begin: float, end: float, part: Any) -> list[Segment]:
    """The time from `begin` to `end`, each piece with the part of what opened last in it."""
    found: list[Segment] = []
    open_: list[tuple[float, str]] = []
    now = begin

    def advance(until: float) -> None:
        nonlocal now
        while now < until:
            while open_ and open_[-1][0] <= now:
                open_.pop()
            edge = min(until, open_[-1][0]) if open_ else until
            found.append((now, edge, open_[-1][1] if open_ else GAPS))
            now = edge

    for event in sorted(spans, key=lambda e: (e["ts"], -e["dur"])):
        start, stop = event["ts"], event["ts"] + event["dur"]
        if stop <= begin or start >= end:
            continue
        advance(start)
        while open_ and open_[-1][0] <= start:
            open_.pop()
        open_.append((stop, part(event, open_[-1][1] if open_ else GAPS)))
    advance(end)
    return found


def _device_segments(
    events: Sequence[Event], host: Sequence[Segment], begin: float, end: float
) -> list[Segment] | None:
    """The same on the device; None where nothing ran on one."""
    work = [event for event in events if event["cat"] in _ON_DEVICE]
    if not work:
        return None
    launched = {e["args"]["correlation"]: e["ts"] for e in events if e["cat"] in _LAUNCHES}
    starts = [segment[0] for segment in host]

    def part(event: Event, outer: str) -> str:
        moment = launched.get(event["args"]["correlation"])
        if moment is None or not begin <= moment < end:
            return OTHER
        at_launch = host[bisect_right(starts, moment) - 1][2]
        return OTHER if at_launch == GAPS else at_launch

    return _segments(work, begin, end, part)


def _sums(segments: Iterable[Segment]) -> dict[str, float]:
    sums = dict.fromkeys(PARTS, 0.0)
    for begin, end, part in segments:
        sums[part] += (end - begin) * _MICROSECOND
    return sums
