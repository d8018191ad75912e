"""Every benchmark there is, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bench.cell import measure as cell
from bench.cell import memory
from bench.cell.columns import FAMILY as CELL
from bench.core import ceilings, timing
from bench.core.session import Bar, Record, Session
from bench.core.table import Family
from bench.ops import run as ops
from bench.ops.columns import OPS
from bench.profile import nsight, profiling
from bench.solver import run as solver
from bench.solver.columns import SOLVER

Run = Callable[[Session, Bar], Iterator[Record]]


@dataclass(frozen=True)
class Benchmark:
    """`run` yields the lines as they are measured; `name` names their file.

    `family` says how they are shown, `weight` how much of the time of a run it may take.
    """

    name: str
    about: str
    run: Run
    family: Family
    weight: float = 1.0


def _solve(part: str, about: str, weight: float = 1.0) -> Benchmark:
    return Benchmark(f"solve.{part}", about, partial(solver.run, part), SOLVER, weight)


BENCHMARKS = (
    Benchmark(
        "ceilings",
        "speed limits of the device: copy_, matmul, multiply-adds",
        ceilings.rows,
        ceilings.FAMILY,
        2.0,
    ),
    Benchmark("ops", "every op and its PyTorch baselines", partial(ops.run, only=()), OPS, 8.0),
    Benchmark("cell", "the equilibrium cell, loops over it, and its roofline", cell.run, CELL, 4.0),
    Benchmark("cell.memory", "memory of its training step, deep and shallow", memory.run, CELL),
    _solve("cost", "time, memory and gradient error of a training step against N", 6.0),
    _solve("peers", "the same for checkpointing, torchdeq and the authors' JAX library", 2.0),
    _solve("options", "cost of the options of solve, and of torch.compile", 4.0),
    _solve("compiled", "the solver and the loop, each eager and compiled", 3.0),
    _solve("error", "gradient error of each format of the state against N", 2.0),
    Benchmark(
        "solve.largest",
        "the largest N and batch that fit in memory",
        solver.run_largest,
        SOLVER,
        3.0,
    ),
    _solve("overhead", "solver overhead per half step (trivial f)", 2.0),
    Benchmark("solve.profile", "where the time of a training step goes", profiling.run, SOLVER),
    Benchmark(
        "nsight",
        "Nsight Compute metrics of our kernels, on a GPU with ncu",
        nsight.run,
        nsight.FAMILY,
        0.1,
    ),
)
"""In the order in which a run takes them."""
FAMILIES = tuple(dict.fromkeys(benchmark.family for benchmark in BENCHMARKS))


def family_of(record: Record) -> Family:
    """Lines of the ops hold the name of their file as `benchmark`, others that of the family."""
    named = [family for family in FAMILIES if family.name == record["benchmark"]]
    return named[0] if named else OPS


def by_family(records: Iterable[Record]) -> dict[Family, list[Record]]:
    """The families in their order, those without lines too."""
    found: dict[Family, list[Record]] = {family: [] for family in FAMILIES}
    for record in records:
        found[family_of(record)].append(record)
    return found


def refusals(records: Iterable[Record]) -> list[str]:
    """Who has no figures, and why, in full."""
    return [
        f"{'refused' if timing.is_fault(r['refused']) else 'no figures'}: "
        f"{family_of(r).label(r)}, {r['provider']}: {r['refused']}"
        for r in records
        if r["refused"]
    ]


def select(parts: Sequence[str]) -> list[Benchmark]:
    """Those with a part in their names; ValueError where a part is in none.

    A part that is a name in full stands for that one alone: `cell`, without `cell.memory`.
    A part may also name some of the ops, by file and op: `half_step.update_`.
    """
    if not parts:
        return list(BENCHMARKS)
    of_ops = [part for part in parts if _is_of_ops(part)]
    unknown = [part for part in parts if part not in of_ops and not _named(part)]
    if unknown:
        raise ValueError(
            f"--only: expected parts of names that --list shows, got {', '.join(unknown)}"
        )
    found = []
    for benchmark in BENCHMARKS:
        if any(_selects(part, benchmark.name) for part in parts):
            found.append(benchmark)
        elif benchmark.name == ops.NAME and of_ops:
            found.append(replace(benchmark, run=partial(ops.run, only=of_ops)))
    return found


def _selects(part: str, name: str) -> bool:
    return part == name or (part in name and all(part != other.name for other in BENCHMARKS))


def _named(part: str) -> bool:
    return any(part in benchmark.name for benchmark in BENCHMARKS)


def _is_of_ops(part: str) -> bool:
    return not _named(part) and any(part in name for name in ops.names())


def listing() -> list[tuple[str, str]]:
    """Name and meaning of each, the files of the ops below `ops`."""
    lines: list[tuple[str, str]] = []
    for benchmark in BENCHMARKS:
        lines.append((benchmark.name, benchmark.about))
        if benchmark.name == ops.NAME:
            lines += [(f"  {name}", ", ".join(found)) for name, found in _files().items()]
    return lines


def _files() -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for name in ops.names():
        file, op = name.split(".", 1)
        files.setdefault(file, []).append(op)
    return files
