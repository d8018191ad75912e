"""Clocks, samples and their statistics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice

import torch

from bench.core.case import Call, Kind, Provider

# Seconds that `count` calls take, going round the bound calls in turn.
Clock = Callable[[Sequence[Call], int], float]


def cpu_clock(calls: Sequence[Call], count: int) -> float:
    """Wall-clock seconds; CPU calls return when their work is done."""
    start = time.perf_counter()
    for call in islice(cycle(calls), count):
        call()
    return time.perf_counter() - start


def cuda_clock(calls: Sequence[Call], count: int) -> float:
    """Seconds between two device events on the current stream around all calls."""
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for call in islice(cycle(calls), count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


CLOCKS: dict[str, Clock] = {"cpu": cpu_clock, "cuda": cuda_clock}


@dataclass
class Contender:
    """A provider in a race: its bound calls, one per set of tensors, and its samples so far.

    `failure` is why it left the race, which goes on without it.
    """

    provider: Provider
    calls: list[Call]
    count: int = 1
    samples: list[float] = field(default_factory=list)
    failure: str | None = None

    def warm_up(self) -> None:
        """Call once: compiles what compiles for these sizes and this number of threads."""
        with self.provider.scope():
            self.calls[0]()

    def take_sample(self, clock: Clock, minimum: float) -> None:
        """Append seconds per call of a loop that lasted `minimum` seconds or more."""
        with self.provider.scope():
            seconds = clock(self.calls, self.count)
            while seconds < minimum:
                aim = 1.1 * minimum / max(seconds, 1e-9)
                self.count = max(self.count + 1, math.ceil(self.count * aim))
                seconds = clock(self.calls, self.count)
        self.samples.append(seconds / self.count)


def alone(name: str, kind: Kind, call: Call) -> Contender:
    """A contender of one call that needs no gate: what it computes has been looked at already."""
    return Contender(Provider(name, kind, lambda _: call, lambda _: call), [call])


def race(
    contenders: Sequence[Contender],
    clock: Clock,
    *,
    rounds: int,
    minimum: float,
    on_sample: Callable[[], None] = lambda: None,
) -> None:
    """Sample the contenders in turn, so that a drift of the machine falls on all of them.

    One that raises, for example out of memory, is left out from then on.
    """
    for contender in contenders:
        contender.samples.clear()
        _unless_failed(contender, contender.warm_up)
    for _ in range(rounds):
        for contender in contenders:
            _unless_failed(contender, partial(contender.take_sample, clock, minimum))
            on_sample()


def _unless_failed(contender: Contender, act: Callable[[], None]) -> None:
    if contender.failure is None:
        try:
            act()
        except Exception as error:
            contender.failure = reason(error)


OUT_OF_MEMORY = "out of memory"


def reason(error: BaseException) -> str:
    """Why a provider has no figures, as it is stored and printed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return f"{OUT_OF_MEMORY}: {error or type(error).__name__}"
    if isinstance(error, BrokenProcessPool):
        return "its process was killed or crashed"
    return f"{type(error).__name__}: {error}"


def is_fault(refused: str | None) -> bool:
    """Whether a reason makes a run fail. To need more memory than there is is a result."""
    return bool(refused) and not str(refused).startswith(OUT_OF_MEMORY)


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """The median, and the spread, as every line holds them."""
    return {f"p{p}_seconds": quantile(samples, p / 100) for p in (20, 50, 80)}


def quantile(samples: Sequence[float], fraction: float) -> float:
    """The `fraction` quantile, linear between the two nearest samples."""
    if not samples:
        raise ValueError("samples: expected at least one, got none")
    ordered = sorted(samples)
    position = fraction * (len(ordered) - 1)
    lower = math.floor(position)
    upper = math.ceil(position)
    return ordered[lower] + (position - lower) * (ordered[upper] - ordered[lower])
