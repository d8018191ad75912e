"""`python -m bench`: run the benchmarks, print and store what they find, and make a page of it."""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import suite
from bench.arguments import parse, session
from bench.core import stored, timing
from bench.core.session import Bar, Record, Session
from bench.show import compare, figures, html, terminal
from bench.show.drawing import ENDINGS
from bench.suite import Benchmark

WIDTH = 160
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where a provider was refused or a benchmark stopped; 130 after an interrupt."""
    chosen = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    if chosen.list:
        for name, about in suite.listing():
            console.print(f"{name:22}{about}", highlight=False, soft_wrap=True)
        return 0
    try:
        selected = suite.select(chosen.only)
    except ValueError as error:
        sys.exit(f"python -m bench: {error}")
    run = session(chosen, sys.argv[1:] if arguments is None else arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for benchmark in selected:  # figures of an earlier run
        for ending in ENDINGS:
            (chosen.out / f"{benchmark.name}{ending}").unlink(missing_ok=True)
    records, status = _run_all(selected, run, console)
    if not records:
        sys.exit("python -m bench: the options leave nothing to measure")
    _finish(records, [chosen.out / f"{b.name}.jsonl" for b in selected], chosen.out, console)
    if chosen.compare is not None:
        compare.print_changes(console, chosen.compare, records)
    return status


def _run_all(
    selected: Sequence[Benchmark], run: Session, console: Console
) -> tuple[list[Record], int]:
    """One benchmark after the other, each one's tables as soon as it is done."""
    records: list[Record] = []
    status = 0
    columns = (
        TextColumn("{task.fields[name]:16}{task.description:28}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        for benchmark in selected:
            own: list[Record] = []
            begin = time.monotonic()
            try:
                _run_one(benchmark, run, progress, own)
            except KeyboardInterrupt:
                status = INTERRUPTED
            except Exception:  # a fault of the benchmark; the others may be right
                stopped = f"{benchmark.name} stopped:\n{traceback.format_exc()}"
                console.print(stopped, style="red", markup=False, highlight=False)
                status = 1
            terminal.show(own, f"{benchmark.name}, {time.monotonic() - begin:.0f} s", console)
            records += own
            if status == INTERRUPTED:
                console.print("interrupted: what was measured is kept", style="yellow")
                return records, status
    faults = any(timing.is_fault(record["refused"]) for record in records)
    return records, 1 if faults else status


def _run_one(benchmark: Benchmark, run: Session, progress: Progress, records: list[Record]) -> None:
    """Add its lines to `records`, each on disk as soon as it is there."""
    path = run.chosen.out / f"{benchmark.name}.jsonl"
    task = progress.add_task("", total=None, name=benchmark.name)
    bar = Bar(
        lambda amount: progress.update(task, total=amount),
        partial(progress.advance, task),
        lambda what: progress.update(task, description=what),
    )
    try:
        with path.open("a" if run.chosen.append else "w", encoding="utf-8") as file:
            for record in benchmark.run(run, bar):
                records.append(record | run.facts)
                file.write(json.dumps(records[-1], allow_nan=False) + "\n")
                file.flush()
    finally:
        progress.remove_task(task)


def _finish(records: Sequence[Record], files: Sequence[Path], out: Path, console: Console) -> None:
    """The machine; the figures and the page, also of the lines that `--append` has kept."""
    terminal.print_machine(console, records[0])
    records = stored.read_all([file for file in files if file.exists()])
    page = out / "report.html"
    page.write_text(html.page(records), encoding="utf-8")
    drawn = [str(path) for path in figures.draw(records, out) if path.suffix == ENDINGS[0]]
    places = [str(out / "*.jsonl"), *drawn, str(page)]
    console.print(f"written: {', '.join(places)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    # A run that is told to end, by `timeout` for instance, prints and draws what it has.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
