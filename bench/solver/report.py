"""The stored lines as tables: cost against depth, and error against depth."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from bench import report
from bench.harness import Record

COST_COLUMNS = (
    "case",
    "N",
    "provider",
    "time",
    "p20 .. p80",
    "to loop",
    "peak MiB",
    "states MiB",
    "reconstruction",
    "gradient error",
)
MEBIBYTE = 2**20
LOST = "lost"


def print_tables(console: Console, records: Sequence[Record]) -> None:
    """The tables, the machine below them, and every refusal in full."""
    measured = [record for record in records if not record["refused"]]
    cost = [record for record in measured if record["part"] == "cost"]
    error = [record for record in measured if record["part"] == "error"]
    options = [record for record in measured if record["part"] == "options"]
    for records_of_part in (cost, options):
        if records_of_part:
            console.print(cost_table(records_of_part))
    if error:
        console.print(error_table(error))
    if any(record["raises"] for record in measured):
        console.print("* check=True raises ReconstructionError here, and no gradient is had")
    if records:
        report.print_machine(console, records[0])
    for text in refusals(records):
        console.print(f"refused: {text}", style="red", highlight=False)


def refusals(records: Sequence[Record]) -> list[str]:
    """Who was refused, and why, in full."""
    return [
        f"{case_label(r)}, N = {r['steps']}, {r['provider']}: {r['refused']}"
        for r in records
        if r["refused"]
    ]


def case_label(record: Record) -> str:
    """The model and beta."""
    return f"{record['op']}, beta {record['beta']:g}"


def cost_table(records: Sequence[Record]) -> Table:
    """One row for each method at each depth."""
    table = Table(*COST_COLUMNS, box=box.SIMPLE, header_style="bold", pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for column in (table.columns[1], *table.columns[3:]):
        column.justify = "right"
    last: tuple[str, int] | None = None
    for record in records:
        point = case_label(record), record["steps"]
        if last is not None and last != point:
            table.add_section()
        shown = (point[0], str(point[1])) if last != point else ("", "")
        style = "bold" if record["kind"] == "revdeq" else None
        table.add_row(*shown, record["provider"], *_cost_cells(record), style=style)
        last = point
    return table


def _cost_cells(record: Record) -> tuple[str, ...]:
    seconds = [record[name] for name in ("p50_seconds", "p20_seconds", "p80_seconds")]
    unit = "us" if seconds[0] < 1e-3 else "ms"
    middle, low, high = (report.in_unit(value, unit) for value in seconds)
    ratio = record["ratio_to_loop"]
    return (
        f"{middle} {unit}",
        f"{low} .. {high}",
        "" if ratio is None else f"{ratio:.2f}x",
        in_mebibytes(record["peak_bytes"]),
        in_mebibytes(record["state_bytes"]),
        error_cell(record, "reconstruction_error"),
        error_cell(record, "gradient_error"),
    )


def in_mebibytes(count: int | None) -> str:
    """Three digits of a size."""
    if count is None:
        return ""
    size = count / MEBIBYTE
    return f"{size:.0f}" if size >= 100 else f"{size:.3g}"


def error_cell(record: Record, name: str) -> str:
    """An error; starred where a user gets an exception in its place; empty where there is none."""
    value = record[name]
    if value is None:
        reconstructs = record["adjoint"] == "reversible" or name == "gradient_error"
        return f"{LOST} *" if reconstructs else ""
    text = "0" if value == 0 else f"{value:.1e}"
    return f"{text} *" if record["raises"] else text


def error_table(records: Sequence[Record]) -> Table:
    """One row for each beta and depth; in each cell the errors of the state and of the gradient."""
    names = list(dict.fromkeys(record["provider"] for record in records))
    table = Table("case", "N", *names, box=box.SIMPLE, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    rows: dict[tuple[str, int], dict[str, Record]] = {}
    for record in records:
        row = rows.setdefault((case_label(record), record["steps"]), {})
        row[record["provider"]] = record
    last = ""
    for (case, steps), row in rows.items():
        if last and last != case:
            table.add_section()
        table.add_row(case if case != last else "", str(steps), *(_pair(row.get(n)) for n in names))
        last = case
    table.caption = "distance of the states from their start, and the error of the gradient"
    return table


def _pair(record: Record | None) -> str:
    if record is None:
        return ""
    state = error_cell(record, "reconstruction_error").removesuffix(" *")
    return f"{state}, {error_cell(record, 'gradient_error')}"
