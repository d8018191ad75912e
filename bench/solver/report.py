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
    measured = [record for record in records if not unmeasured(record)]
    error = [record for record in measured if record["part"] == "error"]
    for part in ("cost", "options", "peers"):
        # Of the peers, one that is not installed keeps its row.
        shown = measured if part != "peers" else [r for r in records if not r["refused"]]
        of_part = [record for record in shown if record["part"] == part]
        if of_part:
            console.print(cost_table(of_part))
    if error:
        console.print(error_table(error))
    if any(record["raises"] for record in measured):
        console.print("* check=True raises ReconstructionError here, and no gradient is had")
    for line in compile_times(measured):
        console.print(line, highlight=False)
    if records:
        report.print_machine(console, records[0])
    for text in absences(records):
        console.print(text, style="yellow", highlight=False, soft_wrap=True)
    for text in refusals(records):
        console.print(f"refused: {text}", style="red", highlight=False)


def refusals(records: Sequence[Record]) -> list[str]:
    """Who was refused, and why, in full."""
    return [
        f"{case_label(r)}, N = {r['steps']}, {r['provider']}: {r['refused']}"
        for r in records
        if r["refused"]
    ]


def absences(records: Sequence[Record]) -> list[str]:
    """Who was not there to be measured, by reason."""
    names: dict[str, dict[str, None]] = {}
    for record in records:
        if skipped(record):
            names.setdefault(record["skipped"], {})[record["provider"]] = None
    return [f"skipped: {', '.join(found)}: {reason}" for reason, found in names.items()]


def skipped(record: Record) -> bool:
    """Whether the provider was not there to be measured. Older lines do not know the word."""
    return bool(record.get("skipped"))


def unmeasured(record: Record) -> bool:
    """Whether a line holds a reason in place of figures."""
    return bool(record["refused"]) or skipped(record)


def compile_times(records: Sequence[Record]) -> list[str]:
    """Of providers that tell how long they compiled, which no time above has in it."""
    seconds: dict[str, list[float]] = {}
    for record in records:
        if record.get("compile_seconds") is not None:
            seconds.setdefault(record["provider"], []).append(record["compile_seconds"])
    return [
        f"{name}: compiled in {min(taken):.1f} .. {max(taken):.1f} s, not in the times"
        for name, taken in seconds.items()
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
        cells = ("skipped",) if skipped(record) else _cost_cells(record)
        table.add_row(*shown, record["provider"], *cells, style=style)
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
        if record["adjoint"] != "reversible" and name != "gradient_error":
            return ""
        text = LOST
    else:
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
