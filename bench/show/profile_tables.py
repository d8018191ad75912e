"""Where the time of a step goes, and what Nsight Compute says, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from bench.core import labels
from bench.core.session import Record
from bench.profile.attribution import PARTS
from bench.show.solver_tables import case_label


def tables(records: Sequence[Record]) -> list[Table]:
    """For each model, beta and depth: the parts, on the host and on the device."""
    found: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        found.setdefault((case_label(record), record["steps"]), []).append(record)
    return [
        _table(f"{case}, N = {steps}: {where}", lines, f"{where}_seconds")
        for (case, steps), lines in found.items()
        for where in ("host", "device")
        if all(line[f"{where}_seconds"] for line in lines)
    ]


def _table(title: str, records: Sequence[Record], name: str) -> Table:
    heads = [record["provider"] for record in records]
    table = Table(title, *heads, box=box.SIMPLE, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for part in PARTS:
        table.add_row(part, *(_cell(r[name][part], r["step_seconds"]) for r in records))
    table.add_section()
    totals = (_cell(r["step_seconds"], r["step_seconds"]) for r in records)
    table.add_row("the step", *totals, style="bold")
    plain = (_cell(r["plain_seconds"], r["step_seconds"]) for r in records)
    table.add_row("a step without profiler", *plain)
    return table


def _cell(seconds: float, step: float) -> str:
    return f"{1e3 * seconds:.2f} ms {seconds / step:4.0%}"


# ---- Nsight Compute


def nsight_tables(records: Sequence[Record]) -> list[Table]:
    """One row for each kernel."""
    columns = ("op", "types", "kernel", "time", "floor", "DRAM GB/s", "of its peak", "bytes")
    columns += ("warps active", "tensor cores")
    table = Table(*columns, box=box.SIMPLE, header_style="bold", pad_edge=False)
    for column in table.columns[3:]:
        column.justify, column.no_wrap = "right", True
    for record in records:
        if not record["skipped"] and not record["refused"]:
            table.add_row(*_nsight_cells(record))
    return [table] if table.rows else []


def _nsight_cells(record: Record) -> tuple[str, ...]:
    seconds, rate = record["device_seconds"], record["dram_bytes_per_second"]
    read = record["dram_bytes"]
    percents = (record[n] for n in ("dram_percent", "occupancy_percent", "tensor_percent"))
    dram, warps, tensor = ("" if value is None else f"{value:.0f}%" for value in percents)
    return (
        record["op"],
        record["dtypes"],
        record["kernel"],
        "" if seconds is None else labels.seconds_cell(seconds),
        labels.seconds_cell(record["floor_seconds"]),
        "" if rate is None else f"{rate * 1e-9:.0f}",
        dram,
        "" if read is None else f"{read / record['bytes']:.2f} of counted",
        warps,
        tensor,
    )


def nsight_notes(records: Sequence[Record]) -> list[str]:
    """Why there is nothing, where there is nothing."""
    return [f"skipped: {r['provider']}: {r['skipped']}" for r in records if r["skipped"]]
