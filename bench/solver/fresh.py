"""A train step in a process of its own: what it takes of memory, and that it may run out of it."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import torch

from bench.core.memory import peak_bytes
from bench.solver import models
from bench.solver.methods import Method, Run

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


class Processes:
    """One process for each name, started at its first question; all end with this context.

    They share nothing with this one. `ask` raises what the step raised, and BrokenProcessPool where
    a process was killed; a later question to that name starts another.
    """

    def __init__(self) -> None:
        self.pools: dict[str, ProcessPoolExecutor] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *failure: object) -> None:
        stopped = kind is not None and not issubclass(kind, Exception)  # Ctrl-C, out of time
        for name in tuple(self.pools):
            self.end(name, at_once=stopped)

    def ask(self, name: str, problem: Problem) -> Answer:
        """The answer of the process of that name."""
        if problem.device.type == "cuda":  # it needs what this one only keeps
            torch.cuda.empty_cache()
        if name not in self.pools:
            self.pools[name] = pool()
        try:
            return self.pools[name].submit(answer, problem).result(PATIENCE)
        except (BrokenProcessPool, TimeoutError):
            self.end(name)
            raise

    def end(self, name: str, *, at_once: bool = False) -> None:
        """End that process: after its last step, or in the middle of it."""
        pool = self.pools.pop(name)
        if at_once:
            for process in (getattr(pool, "_processes", None) or {}).values():
                process.terminate()
        pool.shutdown(cancel_futures=True)


def pool() -> ProcessPoolExecutor:
    """One process, which imports everything anew."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


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
    peak = peak_bytes(run.whole, problem.device)
    if problem.device.type == "cuda":
        torch.cuda.empty_cache()
    return Answer(peak, run.check is not True)
