"""The largest N and batch: the search, on peaks that are known, and real peaks in processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from bench.core import memory, timing
from bench.solver import fresh, largest, methods, models
from bench.solver.fresh import Problem, Processes
from bench.solver.largest import Limits, Search
from bench.solver.measure import Point, Settings
from tests.bench.tiny import TINY

CPU = torch.device("cpu")
SETTINGS = Settings(CPU, 1, rounds=1)


def search(peak: Callable[[int], int | None], budget: int, cap: int = 1000) -> tuple[int, int]:
    """What is found, and in how many trials."""
    seeking = Search(peak, budget, cap)
    return seeking.run((2, 4)), len(seeking.peaks)


@pytest.mark.parametrize("budget", [0, 100, 120, 129, 130, 131, 139, 5000, 10_099, 10_100, 99_999])
def test_an_affine_peak_takes_few_trials(budget: int) -> None:
    found, trials = search(lambda amount: 100 + 10 * amount, budget)
    assert found == min(1000, max(0, (budget - 100) // 10))
    assert trials <= 5


@pytest.mark.parametrize(
    "peak",
    [
        lambda n: n**3,
        lambda n: int(50 * n**0.5),
        lambda n: 100 * (n // 7),
        lambda n: 10 * n if n < 40 else 5000,
        lambda n: 10,
        lambda n: 700,
    ],
)
def test_a_peak_of_any_growth_is_found(peak: Callable[[int], int]) -> None:
    expected = max((n for n in range(1, 1001) if peak(n) <= 600), default=0)
    found, trials = search(peak, 600)
    assert found == expected
    assert trials <= 8 + 10 + 2  # by the line, then by halves


def test_where_memory_runs_out_before_the_line_says_so() -> None:
    """As on a GPU, where the context and fragments take their part, and no peak is known then."""

    def peak(amount: int) -> int | None:
        return 10 * amount if amount <= 333 else None

    found, trials = search(peak, 10_000)
    assert found == 333
    assert trials <= 14
    coarse = Search(peak, 10_000, 1000, precision=0.02)
    assert 333 / 1.02 <= coarse.run((2, 4)) <= 333
    assert len(coarse.peaks) < trials


def point(*names: str) -> Point:
    wanted = tuple(method for method in methods.COST if method.name in names)
    return Point("largest", "mlp", TINY, 0.5, 4, wanted)


def test_the_amount_that_is_found_fits_and_the_next_does_not() -> None:
    """Measured again in this process: a process of its own counts the same."""
    model = models.make("mlp", TINY, CPU)
    limits = Limits(100_000, {"N": 64, "batch": 4096})
    (record,) = largest.measure(point("lerp loop"), SETTINGS, model, limits, "N")

    def peak(steps: int) -> int:
        run = methods.Run(methods.LOOP, model, 0.5, steps)
        run.gradients()
        return memory.peak_bytes(run.gradients, CPU)

    assert record["peak_bytes"] == peak(record["largest"]) <= limits.budget  # type: ignore[operator]
    assert peak(record["largest"] + 1) > 100_000
    assert record["at_cap"] is False and record["peak_in"] == "a fresh process"
    assert dict(map(tuple, record["trials"]))[record["largest"]] == record["peak_bytes"]


def _ends(problem: object) -> None:
    os._exit(3)


def _runs_out(problem: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_how_a_process_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(methods.LOOP, "mlp", TINY, 0.5, 2, CPU, 1)
    with Processes() as processes:
        monkeypatch.setattr(fresh, "answer", _runs_out)
        with pytest.raises(torch.OutOfMemoryError) as memory_error:
            processes.ask("a", problem)
        assert timing.reason(memory_error.value) == "out of memory: CUDA out of memory"
        monkeypatch.setattr(fresh, "answer", _ends)
        with pytest.raises(BrokenProcessPool) as ended:
            processes.ask("a", problem)
        assert timing.reason(ended.value) == "its process was killed or crashed"
        assert timing.is_fault(timing.reason(ended.value))
        assert processes.pools == {}


def test_a_process_that_ends_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(this: Processes, name: str, problem: Problem) -> fresh.Answer:
        if problem.method == methods.LOOP:
            raise BrokenProcessPool("ended")
        return fresh.Answer(10, raises=True)

    monkeypatch.setattr(Processes, "ask", broken)
    model = models.make("mlp", TINY, CPU)
    limits = Limits(100, {"N": 8, "batch": 64})
    names = "lerp loop", "reversible float32"
    lost, found = largest.measure(point(*names), SETTINGS, model, limits, "N")
    assert "crashed" in lost["refused"]
    assert (found["largest"], found["at_cap"], found["raises"]) == (8, True, True)
