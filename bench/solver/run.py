"""The benchmarks of the solver as `python -m bench` calls them."""

from __future__ import annotations

from collections.abc import Iterator

from bench.core.session import Bar, Record, Session
from bench.solver import largest, models, plan
from bench.solver.fresh import Processes
from bench.solver.largest import Limits
from bench.solver.measure import Point, measure, settings_of

MEBIBYTE = 2**20
# Where, in full, each method has a process in which its peaks are measured.
IN_FRESH_PROCESSES = ("cost", "peers")
# Where no other budget is given, and there is no GPU whose memory is the budget.
BUDGET_MB = {"quick": 1.0, "default": 16.0, "full": 256.0}
# Where a search ends: a trial beyond takes longer than what it tells is worth.
CAPS = {
    "quick": {"N": 16, "batch": 256},
    "default": {"N": 128, "batch": 2**14},
    "full": {"N": 256, "batch": 2**20},
}
CAP_ON_GPU = {"N": 1024}


def run(part: str, session: Session, bar: Bar) -> Iterator[Record]:
    """The lines of cost, options, peers, error and overhead, point by point."""
    session.use_threads()
    with Processes() as processes:
        fresh = processes if session.tier == "full" and part in IN_FRESH_PROCESSES else None
        settings = settings_of(session, fresh)
        for point in _shown(plan.points(part, session, plan.PARTS[part].methods), bar):
            model = models.make(point.model, point.sizes, session.device)
            yield from measure(point, settings, model)


def run_largest(session: Session, bar: Bar) -> Iterator[Record]:
    """The lines of largest, for N and then for the batch."""
    session.use_threads()
    settings, limits = settings_of(session), _limits(session)
    found = plan.points("largest", session, plan.PARTS["largest"].methods)
    pairs = [(point, axis) for point in found for axis in largest.AXES]
    bar.total(len(pairs))
    for point, axis in pairs:
        bar.at(f"{point.model}: {axis}")
        model = models.make(point.model, point.sizes, session.device)
        yield from largest.measure(point, settings, model, limits, axis)
        bar.advance(1)


def _limits(session: Session) -> Limits:
    stated = session.chosen.budget_mb
    if stated is None and session.device.type != "cuda":
        stated = BUDGET_MB[session.tier]
    budget = None if stated is None else int(stated * MEBIBYTE)
    more = CAP_ON_GPU if session.device.type == "cuda" and session.tier == "full" else {}
    return Limits(budget, CAPS[session.tier] | more)


def _shown(points: list[Point], bar: Bar) -> Iterator[Point]:
    """The points, with the bar at each."""
    bar.total(sum(point.steps for point in points))
    for point in points:
        bar.at(f"{point.model} beta {point.beta:g} N {point.steps}")
        yield point
        bar.advance(point.steps)
