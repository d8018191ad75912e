"""Stored lines: where they are, and reading them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from bench.core import machine
from bench.core.session import Record

RESULTS = machine.ROOT / "bench" / "results"
EPYC = "cpu/AMD-EPYC-2-cores-busy"
XEON = "cpu/Intel-Xeon-2-cores"
XEON_AMX = "cpu/Intel-Xeon-AMX-2-cores"  # a processor that also multiplies bfloat16 matrices
# Cores that other work took, above which a row is marked as one of a busy machine.
BUSY = 0.5
# What the files of some ops were called when lines were stored.
FORMER = {"half_step_exact": "exact_step", "quantize": "conversion"}


def busy(record: Record) -> bool:
    """Whether other work ran: while the row was measured, or, in older lines, before the run."""
    others = record.get("other_load")
    return (record["load_average"] if others is None else others) > BUSY


def disturbed(record: Record) -> bool:
    """Whether the row itself was measured beside other work."""
    return (record.get("other_load") or 0.0) > BUSY


def lines(folder: str, benchmark: str) -> list[Record]:
    """The lines of one benchmark on one machine."""
    return read(RESULTS / folder / f"{benchmark}.jsonl")


def every(benchmark: str) -> list[Record]:
    """The lines of one benchmark on all machines."""
    return [record for path in paths(benchmark) for record in read(path)]


def paths(benchmark: str) -> list[Path]:
    """Where those stand."""
    return sorted(RESULTS.glob(f"**/{benchmark}.jsonl"))


def read(path: Path) -> list[Record]:
    """The records of a JSON-lines file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    for record in records:
        record["benchmark"] = FORMER.get(record["benchmark"], record["benchmark"])
    return records


def read_all(paths: Iterable[Path]) -> list[Record]:
    """The records of files and of all files in folders; ValueError where a folder has none."""
    records: list[Record] = []
    for path in paths:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"expected files of JSON lines in {path}, got none")
        for file in files:
            records += read(file)
    return records
