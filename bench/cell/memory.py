"""The memory of a train step of the cell: deep beside shallow, without the digits.

A solve that walks back needs the same memory at any depth, plus one digit per number and half
step; a loop stores what its backward pass reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import torch

from bench.cell.columns import MEMORY
from bench.cell.methods import BETA, Problem, Way, call_of, ways
from bench.cell.sizes import Size, about_of, sizes
from bench.core import memory, timing
from bench.core.session import Bar, Record, Session
from bench.solver import fresh
from revdeq_kernels import digit_bytes

DEPTHS = {"quick": (2, 4), "default": (2, 64), "full": (2, 64)}
# Of more the loop stores gigabytes, and a process of its own would tell the same.
MOST_FEATURES = 256
FEW_ROWS = 16


@dataclass(frozen=True)
class Question:
    """What the other process makes and runs."""

    name: str
    size: Size
    device: torch.device


@dataclass(frozen=True)
class Answer:
    """The most bytes of tensors at once, and of all memory of a process that is fresh."""

    peak: int
    resident: int | None


def run(session: Session, bar: Bar) -> Iterator[Record]:
    """One line for each provider and depth, at every size that is timed."""
    depths = tuple(session.chosen.depths or DEPTHS[session.tier])
    found = {
        replace(size, part=MEMORY, steps=max(depths), threads=session.threads): None
        for size in sizes(session)
        if size.features <= MOST_FEATURES
    }
    bar.total(len(found))
    for size in found:
        for way in ways(size.problem(session.device)):
            if session.wants_provider(way.name) and MEMORY in way.parts:
                bar.at(f"{size.features} features, {way.name}")
                yield from measure(way, size, depths, session)
        bar.advance(1)


def measure(way: Way, size: Size, depths: Sequence[int], session: Session) -> Iterator[Record]:
    """A line for each depth; what is held beside the digits over the same at the first one."""
    first: int | None = None
    for steps in depths:
        question = Question(way.name, replace(size, steps=steps), session.device)
        record: Record = about_of(question.size) | {"provider": way.name, "kind": way.kind}
        try:
            found, place = _ask(question, session)
        except Exception as error:  # printed and stored; makes the run fail if it is a fault
            yield record | {"refused": timing.reason(error)}
            continue
        digits = digit_bytes(record["elements"], BETA) * 2 * steps if way.digits else 0
        beside = found.peak - digits
        first = first or beside
        yield record | {
            "peak_bytes": found.peak,
            "digit_bytes": digits,
            "beside_bytes": beside,
            "beside_growth": beside / first,
            "resident_bytes": found.resident,
            "peak_in": place,
        }


def _ask(question: Question, session: Session) -> tuple[Answer, str]:
    """In full from a process of its own, which has held nothing before."""
    if session.tier != "full":
        return replace(answer(question), resident=None), "the process of the times"
    pool: ProcessPoolExecutor = fresh.pool()
    try:
        return pool.submit(answer, question).result(fresh.PATIENCE), "a fresh process"
    finally:
        pool.shutdown(cancel_futures=True)


def answer(question: Question) -> Answer:
    """Run the step, in whichever process this is called."""
    size = question.size
    if size.threads is not None:
        torch.set_num_threads(size.threads)
    problem = size.problem(question.device)
    (way,) = (way for way in ways(problem) if way.name == question.name)
    call_of(MEMORY, way.solve, Problem(problem.cell, problem.x[:FEW_ROWS], size.steps))()
    call = call_of(MEMORY, way.solve, problem)
    resident = memory.resident_bytes(call)
    return Answer(memory.peak_bytes(call, question.device), resident)
