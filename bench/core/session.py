"""One run of the benchmarks: its options, device and tier."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch

from bench.core import machine

Record = dict[str, Any]
Tier = Literal["quick", "default", "full"]


@dataclass
class Session:
    """What every benchmark of a run is handed.

    `tier` is "quick" for a smoke run at small sizes, "default" for all benchmarks in minutes, and
    "full" for all cases. `chosen` holds the options; one that is None or empty leaves
    the choice to the benchmark. `facts` go into every stored line. `ceilings` are kept by the
    number of threads that they were measured with.
    """

    chosen: argparse.Namespace
    device: torch.device
    tier: Tier
    facts: Record
    ceilings: dict[int | None, list[Record]] = field(default_factory=dict)

    @property
    def sample_seconds(self) -> float:
        """What a sample lasts at least."""
        return {"quick": 0.01, "default": 0.05, "full": 0.1}[self.tier]

    def samples(self, full: int) -> int:
        """How many samples a provider takes: as asked for, or 3, or `full` in full."""
        return self.chosen.samples or (full if self.tier == "full" else 3)

    @cached_property
    def thread_counts(self) -> tuple[int | None, ...]:
        """Of the benchmarks that run with several; None alone on a GPU."""
        asked = self.chosen.threads if self.device.type == "cpu" else None
        return tuple(asked) if asked else (self.threads,)

    @cached_property
    def threads(self) -> int | None:
        """Of the benchmarks that run with one count; None on a GPU."""
        if self.device.type == "cuda":
            return None
        return self.chosen.threads[0] if self.chosen.threads else machine.usable_cores()

    def use_threads(self) -> None:
        """Set that count: another benchmark may have left its own."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def wants_provider(self, name: str) -> bool:
        """Whether `--providers` leaves it in."""
        return not self.chosen.providers or any(part in name for part in self.chosen.providers)


@dataclass
class Bar:
    """The progress of a benchmark, as reported to the display."""

    total: Callable[[float], None] = lambda amount: None
    advance: Callable[[float], None] = lambda amount: None
    at: Callable[[str], None] = lambda what: None
