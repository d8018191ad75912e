"""Every benchmark there is, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from bench.cell import measure as cell_measure
from bench.core import ceilings
from bench.core.session import Bar, Record, Session
from bench.ops import run as ops
from bench.profile import nsight, profiling
from bench.solver import run as solver

Run = Callable[[Session, Bar], Iterator[Record]]


@dataclass(frozen=True)
class Benchmark:
    """`run` yields the lines as they are measured; `name` names their file."""

    name: str
    about: str
    run: Run


def _solve(part: str, about: str) -> Benchmark:
    return Benchmark(f"solve.{part}", about, partial(solver.run, part))


BENCHMARKS = (
    Benchmark("ceilings", "what the device can do: copy_, and a matmul", ceilings.rows),
    Benchmark("ops", "every op beside what a user could write", partial(ops.run, only=())),
    Benchmark("cell", "the equilibrium cell against rows, beside its roofline", cell_measure.run),
    _solve("cost", "time, memory and gradient error of a train step against N"),
    _solve("peers", "the same beside checkpoint, torchdeq, the authors' JAX library"),
    _solve("options", "what solve's options and torch.compile cost"),
    _solve("error", "what each format of the state does to the gradient, against N"),
    Benchmark("solve.largest", "the largest N and batch that fit", solver.run_largest),
    _solve("overhead", "what a half step costs where f costs nothing"),
    Benchmark("solve.profile", "where the time of a step goes", profiling.run),
    Benchmark("nsight", "our kernels by Nsight Compute, on a GPU where there is ncu", nsight.run),
)
"""In the order in which a run takes them."""


def select(parts: Sequence[str]) -> list[Benchmark]:
    """Those with a part in their names; ValueError where a part is in none.

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
        if any(part in benchmark.name for part in parts):
            found.append(benchmark)
        elif benchmark.name == ops.NAME and of_ops:
            found.append(Benchmark(ops.NAME, benchmark.about, partial(ops.run, only=of_ops)))
    return found


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
