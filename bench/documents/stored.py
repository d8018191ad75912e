"""The stored results, and tables of them in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import machine, report
from bench.session import Record

RESULTS = machine.ROOT / "bench" / "results"
EPYC = "cpu/AMD-EPYC-2-cores-busy"
XEON = "cpu/Intel-Xeon-2-cores"


def lines(folder: str, benchmark: str) -> list[Record]:
    """The lines of one benchmark on one machine."""
    return report.read(RESULTS / folder / f"{benchmark}.jsonl")


def every(benchmark: str) -> list[Record]:
    """The lines of one benchmark on all machines."""
    return [record for path in paths(benchmark) for record in report.read(path)]


def paths(benchmark: str) -> list[Path]:
    """Where those stand."""
    return sorted(RESULTS.glob(f"**/{benchmark}.jsonl"))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A markdown table; all columns but the first `left` ones are aligned to the right."""
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, rule, *rows))


def provenance(records: Sequence[Record]) -> str:
    """The machine, whether it had other work, threads, commits and days: one line."""
    first = records[0]
    busy = ", busy" if any(r["load_average"] > report.BUSY for r in records) else ""
    threads = sorted({record["threads"] for record in records} - {None})
    counts = " and ".join(str(count) for count in threads)
    commits = ", ".join(sorted({record["commit"] for record in records}))
    days = ", ".join(sorted({record["date"][:10] for record in records}))
    of_threads = f"; {counts} thread{'s' if threads != [1] else ''}" if threads else ""
    where = f"{first['device_name']}{busy}{of_threads}"
    return f"{where}; torch {first['torch']}, commit {commits}, {days}"
