"""Stored lines, and the table of the ops and of the ceilings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from bench.session import Record

# Load average above which the machine had other work to do.
BUSY = 0.5
COLUMNS = ("case", "provider", "time", "p20 .. p80", "GB/s", "of copy_", "to best")
SHORT_TYPES = {
    "float64": "fp64",
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
}
# In a pass f tells these types: gradients are float32, the others have the type of f.
OF_A_PASS = ("grad_y", "grad_z", "vjp", "seed")


def read(path: Path) -> list[Record]:
    """The records of a JSON-lines file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


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


def op_label(record: Record) -> str:
    """The op, its variant where it has some, and beta where it matters to the arithmetic."""
    label = record["op"]
    if record.get("variant"):
        label += f" ({record['variant']})"
    exact = "int32" in list(record["dtypes"].values())[:1] and record["benchmark"] != "per_call"
    return label if record["beta"] is None or not exact else f"{label} beta {record['beta']:g}"


def types_label(record: Record) -> str:
    """The types in the order of the op's arguments, such as `fp32, f bf16, cast bf16`."""
    parts = []
    for role, name in record["dtypes"].items():
        if "f" in record["dtypes"] and role in OF_A_PASS:
            continue
        short = SHORT_TYPES.get(name, name)
        parts.append(short if not parts else f"{role} {short}")
    return ", ".join(parts)


def place_label(record: Record) -> str:
    """The size of the state and, on a CPU, the threads."""
    count = "s" if record["elements"] > 1 else ""
    size_mb = record["size_mb"]
    size = f"{record['elements']} element{count}" if size_mb is None else f"{size_mb:g} MiB"
    if record["threads"] is None or record["size_mb"] is None:
        return size
    return f"{size}, {record['threads']} thread{'s' if record['threads'] > 1 else ''}"


def in_unit(seconds: float, unit: str) -> str:
    """Three digits of a time in us or ms."""
    value = seconds * {"us": 1e6, "ms": 1e3}[unit]
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def seconds_cell(seconds: float) -> str:
    """A time in the unit that suits it."""
    unit = "us" if seconds < 1e-3 else "ms"
    return f"{in_unit(seconds, unit)} {unit}"


def time_cells(record: Record) -> tuple[str, str]:
    """The median, and p20 .. p80 in the same unit."""
    unit = "us" if record["p50_seconds"] < 1e-3 else "ms"
    low, high = (in_unit(record[name], unit) for name in ("p20_seconds", "p80_seconds"))
    return seconds_cell(record["p50_seconds"]), f"{low} .. {high}"


def figures(record: Record) -> tuple[str, str, str, str, str]:
    """Time, spread, GB/s, share of the bound, ratio to the best alternative."""
    if record["refused"]:
        return ("refused", "", "", "", "")
    rate, share = record["gb_per_second"], record["share_of_bound"]
    ratio = record["ratio_to_best_alternative"]
    return (
        *time_cells(record),
        "" if rate is None else f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}",
        "" if share is None else f"{share:.0%}",
        "" if ratio is None or record["kind"] == "bound" else f"{ratio:.2f}x",
    )


def heading(record: Record) -> str:
    """The machine and the versions that figures are read with."""
    cache = record["cache_bytes"]
    cache_text = "unknown" if cache is None else f"{cache / 2**20:g} MiB"
    return (
        f"{record['device_name']} (last cache {cache_text}); python {record['python']}, "
        f"torch {record['torch']}, triton {record['triton']}, "
        f"revdeq-kernels {record['revdeq_kernels']}, commit {record['commit']}, "
        f"{record['date'][:10]}"
    )


def case_labels(record: Record) -> tuple[str, str, str]:
    """What names a case in a table: op, types, place."""
    return op_label(record), types_label(record), place_label(record)


def groups(records: Iterable[Record]) -> list[list[Record]]:
    """Records that belong side by side: the providers of one case at one size and thread count."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        found.setdefault((record["benchmark"], *case_labels(record)), []).append(record)
    return list(found.values())


def table_of(records: Sequence[Record]) -> Table:
    """One row for each provider of each case."""
    table = Table(*COLUMNS, box=box.SIMPLE, header_style="bold", pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    for group in groups(records):
        # The name of a case stands in the first column, one line of it beside each provider.
        for label, record in zip_longest(case_labels(group[0]), group, fillvalue=None):
            style = "bold" if record is not None and record["kind"] == "revdeq" else None
            cells = () if record is None else (record["provider"], *figures(record))
            table.add_row(label or "", *cells, style=style)
        table.add_section()
    return table


def ceilings_table(records: Sequence[Record]) -> Table:
    """What the device can do at best."""
    table = Table("ceiling", "fastest", "p20 .. p80", "GB/s", "TFLOP/s", box=box.SIMPLE)
    table.pad_edge = False
    for column in table.columns[1:]:
        column.justify = "right"
    for record in records:
        cells = ("refused",)
        if not record["refused"]:
            rates = (record[name] for name in ("gb_per_second", "tflop_per_second"))
            shown = ("" if rate is None else f"{rate:.3g}" for rate in rates)
            cells = (seconds_cell(record["fastest_seconds"]), time_cells(record)[1], *shown)
        table.add_row(record["provider"], *cells)
    return table


def print_machine(console: Console, record: Record) -> None:
    """The line that figures are read with, and whether the machine had other work."""
    console.print(heading(record), highlight=False)
    if record["load_average"] > BUSY:
        console.print(
            f"other work was running (load average {record['load_average']} at the start): "
            "these are figures of a busy machine",
            style="yellow",
            highlight=False,
        )
