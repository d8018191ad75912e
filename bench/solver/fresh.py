"""A train step in a process of its own: what it takes of memory, and that it may run out of it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bench.solver import models
from bench.solver.memory import peak_bytes
from bench.solver.methods import Method, Run

if TYPE_CHECKING:
    from bench.solver.measure import Point, Settings

# Seconds for one answer.
PATIENCE = 600.0


@dataclass(frozen=True)
class Problem:
    """What the process makes and runs. `check` None looks for the first one that does not raise."""

    method: Method
    model: str
    sizes: models.Sizes
    beta: float
    steps: int
    device: torch.device
    threads: int | None
    check: bool | float | None = None


@dataclass(frozen=True)
class Answer:
    """The bytes at the peak of a step, and whether `solve` raises there as a user has it."""

    peak: int
    raises: bool


def problem_of(point: Point, settings: Settings, run: Run) -> Problem:
    """The same step as `run`."""
    return Problem(
        run.method,
        point.model,
        point.sizes,
        point.beta,
        point.steps,
        settings.device,
        settings.threads,
        run.check,
    )


@contextmanager
def process() -> Iterator[ProcessPoolExecutor]:
    """One process, started at its first task; it shares nothing with this one."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def peak(problem: Problem) -> int:
    """The bytes at the peak of one step, in a process that ends with it.

    Raises what the step raised; BrokenProcessPool where the process was killed.
    """
    if problem.device.type == "cuda":  # the process needs what this one only keeps
        torch.cuda.empty_cache()
    with process() as pool:
        return pool.submit(answer, problem).result(PATIENCE).peak


def answer(problem: Problem) -> Answer:
    """Run the step, in whichever process this is called."""
    if problem.threads is not None:
        torch.set_num_threads(problem.threads)
    model = models.make(problem.model, problem.sizes, problem.device).to(problem.method.f)
    run = Run(problem.method, model, problem.beta, problem.steps)
    if problem.check is None:
        run = run.settled()[0]
    else:
        run = Run(problem.method, model, problem.beta, problem.steps, problem.check)
        run.gradients()  # what is allocated once does not count
    return Answer(peak_bytes(run.gradients, problem.device), run.check is not True)
