"""`python -m bench`: run the benchmarks, print and store their rows, and write a report of them."""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import BEGIN, suite
from bench.arguments import parse, session
from bench.core import stored, timing
from bench.core.budget import Budget, OutOfTimeError, limit
from bench.core.load import Meter
from bench.core.session import Bar, Record, Session
from bench.show import compare, figures, html, terminal
from bench.show.drawing import ENDINGS
from bench.suite import Benchmark
from revdeq_kernels.core import backends

WIDTH = 160
INTERRUPTED = 130
PROGRAM = "python -m bench"


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 if a row was rejected or a benchmark failed; 130 after an interrupt."""
    chosen = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    if chosen.list:
        for name, about in suite.listing():
            console.print(f"{name:22}{about}", highlight=False, soft_wrap=True)
        return 0
    try:
        selected = suite.select(chosen.only)
    except ValueError as error:
        sys.exit(f"{PROGRAM}: {error}")
    run = session(chosen, sys.argv[1:] if arguments is None else arguments)
    if (reason := missing_backend(run.device)) and not chosen.without_compiled:
        ways = "--without-compiled measures all the same"
        if run.device.type != "cpu":
            ways += ", --device cpu measures the CPU"
        sys.exit(f"{PROGRAM}: {reason} ({ways})")
    chosen.out.mkdir(parents=True, exist_ok=True)
    for benchmark in selected:  # figures of an earlier run
        for ending in ENDINGS:
            (chosen.out / f"{benchmark.name}{ending}").unlink(missing_ok=True)
    records, status, late = _run_all(selected, run, console)
    if not records:
        if status == INTERRUPTED:
            print(f"{PROGRAM}: interrupted before the first row was complete", file=sys.stderr)
            return status
        if late:
            sys.exit(
                f"{PROGRAM}: the time was over before the first row was complete; --minutes sets it"
            )
        sys.exit(f"{PROGRAM}: no case matches these options; see --list")
    _finish(records, [chosen.out / f"{b.name}.jsonl" for b in selected], chosen.out, console)
    if chosen.compare is not None:
        compare.print_changes(console, chosen.compare, records)
    return status


def missing_backend(device: torch.device) -> str | None:
    """Why this project's own kernels cannot run there; figures without them say nothing of it."""
    if device.type == "cpu":
        names = ["cpu"]
    else:  # without the CUDA library, a GPU's tensors go to Triton
        names = ["triton"] if torch.version.hip else ["cuda", "triton"]
    reasons = {name: backends.why_not(name) for name in names}
    if not all(reasons.values()):
        return None
    named = "; ".join(f"backend {name!r}: {reason}" for name, reason in reasons.items())
    return f"nothing to measure, this project's compiled kernels are missing: {named}"


def _run_all(
    selected: Sequence[Benchmark], run: Session, console: Console
) -> tuple[list[Record], int, bool]:
    """One benchmark after the other, each one's tables as soon as it is done.

    The rows, the exit status, and whether a benchmark ran out of time.
    """
    records: list[Record] = []
    status, late = 0, False
    budget = Budget(run.chosen.minutes, BEGIN)
    columns = (
        TextColumn("{task.fields[name]:15}{task.description:26.26}"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        for i, benchmark in enumerate(selected):
            own: list[Record] = []
            begin = time.monotonic()
            note = ""
            try:
                with limit(budget.share([other.weight for other in selected[i:]])):
                    _run_one(benchmark, run, progress, own)
            except KeyboardInterrupt:
                status = INTERRUPTED
            except OutOfTimeError:
                late = True
                note = terminal.out_of_time(benchmark.name, budget.minutes)
            except Exception:  # a fault of the benchmark; the others may be right
                stopped = f"{benchmark.name} failed:\n{traceback.format_exc()}"
                console.print(stopped, style="red", markup=False, highlight=False)
                status = 1
            terminal.show(own, f"{benchmark.name}, {time.monotonic() - begin:.0f} s", console, note)
            records += own
            if status == INTERRUPTED:
                where = run.chosen.out
                console.print(f"interrupted; results so far are in {where}", soft_wrap=True)
                return records, status, late
    faults = any(timing.is_fault(record["refused"]) for record in records)
    return records, 1 if faults else status, late


def _run_one(benchmark: Benchmark, run: Session, progress: Progress, records: list[Record]) -> None:
    """Add its lines to `records`, each on disk as soon as it is there."""
    path = run.chosen.out / f"{benchmark.name}.jsonl"
    task = progress.add_task("", total=None, name=benchmark.name)
    bar = Bar(
        lambda amount: progress.update(task, total=amount),
        partial(progress.advance, task),
        lambda what: progress.update(task, description=what),
    )
    meter = Meter()
    try:
        with path.open("a" if run.chosen.append else "w", encoding="utf-8") as file:
            for record in benchmark.run(run, bar):
                records.append(record | run.facts | {"other_load": meter.others()})
                file.write(json.dumps(records[-1], allow_nan=False) + "\n")
                file.flush()
    finally:
        progress.remove_task(task)


def _finish(records: Sequence[Record], files: Sequence[Path], out: Path, console: Console) -> None:
    """Print the machine; write figures and report, also of the lines that `--append` has kept."""
    terminal.print_machine(console, records)
    records = stored.read_all([file for file in files if file.exists()])
    page = out / "report.html"
    page.write_text(html.page(records), encoding="utf-8")
    drawn = [str(path) for path in figures.draw(records, out) if path.suffix == ENDINGS[0]]
    places = [str(out / "*.jsonl"), *drawn, str(page)]
    console.print(f"written: {', '.join(places)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    # A run that is told to end, by `timeout` for instance, prints and draws what it has.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while nothing is measured: options, tables, figures
        print(f"\n{PROGRAM}: interrupted; the rows so far are in *.jsonl of --out", file=sys.stderr)
        sys.exit(INTERRUPTED)
