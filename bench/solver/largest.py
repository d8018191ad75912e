"""The largest N, and the largest batch, whose train step fits: on a GPU the card, else a budget.

Found by trying. The next amount to try is where the line through two peaks meets the budget; so
where memory is affine in the amount few trials are needed, and where it is not, more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from bench.core import timing
from bench.core.session import Record
from bench.solver.fresh import Answer, Problem, Processes
from bench.solver.measure import Point, Settings, blank_record
from bench.solver.methods import Method, Skipped
from bench.solver.models import Model

AXES = ("N", "batch")
FIRST = {"N": (2, 4), "batch": (8, 16)}
# N where the batch is what grows.
STEPS = 8
# Beyond this many trials by the line the interval is halved.
BY_LINE = 8


@dataclass
class Search:
    """The largest amount up to `cap` whose peak is within `budget`.

    `trial` gives the peak in bytes, or None where memory ran out. `precision` is the share of the
    amount that may be left unknown: 0 asks for the amount itself.
    """

    trial: Callable[[int], int | None]
    budget: int
    cap: int
    precision: float = 0.0
    peaks: dict[int, int | None] = field(default_factory=dict)

    def run(self, first: tuple[int, int]) -> int:
        """That amount; 0 where not even one fits."""
        low, high = 0, self.cap + 1  # the largest known to fit, the smallest known not to
        ahead = list(first)
        while high - low > max(1, self.precision * low):
            wanted = ahead.pop(0) if ahead else self._next(low, high)
            amount = min(max(wanted, low + 1), high - 1)
            if self._fits(amount):
                low = amount
            else:
                high, ahead = amount, []
        return low

    def _fits(self, amount: int) -> bool:
        self.peaks[amount] = self.trial(amount)
        peak = self.peaks[amount]
        return peak is not None and peak <= self.budget

    def _next(self, low: int, high: int) -> int:
        known = sorted((a, p) for a, p in self.peaks.items() if p is not None)
        half = (low + high) // 2
        if len(known) < 2 or len(self.peaks) > BY_LINE:
            return half
        # On both sides of the budget where something above it has a peak, else the last two.
        end = next((i for i, (amount, _) in enumerate(known) if amount >= high), len(known) - 1)
        (a, p), (b, q) = known[max(end, 1) - 1], known[max(end, 1)]
        # Flat peaks leave nothing in the way of the cap.
        by_line = self.cap if q <= p else a + (self.budget - p) * (b - a) // (q - p)
        # What did not fit has refuted a line that goes beyond it.
        return half if high <= min(by_line, self.cap) else by_line


@dataclass(frozen=True)
class Limits:
    """Bytes that must suffice, None for all that the GPU has; and where a search ends."""

    budget: int | None
    caps: dict[str, int]


def measure(
    point: Point, settings: Settings, model: Model, limits: Limits, axis: str
) -> Iterator[Record]:
    """One line for each method: the largest amount along the axis."""
    for method in point.methods:
        blank = blank_record(point, settings, method, model) | {"raises": False, "axis": axis}
        try:
            yield blank | _largest(point, settings, method, limits, axis)
        except Skipped as missing:
            yield blank | {"skipped": str(missing)}
        except Exception as error:  # printed and stored; makes the run fail
            yield blank | {"refused": timing.reason(error)}


def _largest(point: Point, settings: Settings, method: Method, limits: Limits, axis: str) -> Record:
    answers: dict[int, Answer] = {}
    on_gpu = settings.device.type == "cuda"

    with Processes() as processes:

        def trial(amount: int) -> int | None:
            # A process that ran out of memory is not used again; a CPU's budget is only counted.
            name = str(amount) if on_gpu else method.name
            problem = _problem(point, settings, method, axis, amount)
            try:
                answers[amount] = processes.ask(name, problem)
            except (torch.OutOfMemoryError, MemoryError):
                return None
            finally:
                if on_gpu and name in processes.pools:
                    processes.end(name)
            return answers[amount].peak

        budget = limits.budget or torch.cuda.mem_get_info(settings.device)[1]
        search = Search(trial, budget, limits.caps[axis], precision=0.02 if on_gpu else 0.0)
        largest = search.run(FIRST[axis])
    return {
        "largest": largest,
        "at_cap": largest == limits.caps[axis],
        "budget_bytes": budget,
        "budget": "all of the GPU" if limits.budget is None else "stated",
        "peak_bytes": answers[largest].peak if largest else None,
        "peak_in": "a fresh process for each trial" if on_gpu else "a fresh process",
        "raises": largest > 0 and answers[largest].raises,
        "trials": [list(pair) for pair in search.peaks.items()],
    }


def _problem(point: Point, settings: Settings, method: Method, axis: str, amount: int) -> Problem:
    steps = amount if axis == "N" else point.steps
    sizes = point.sizes if axis == "N" else point.sizes.with_batch(amount)
    device, threads = settings.device, settings.threads
    return Problem(method, point.model, sizes, point.beta, steps, device, threads)
