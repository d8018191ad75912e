"""The stored lines as tables: what a solve costs, its errors, what fits, what a half step costs."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from bench.core import labels, timing
from bench.core.session import Record

COST_COLUMNS = (
    "case",
    "N",
    "provider",
    "time",
    "p20 .. p80",
    "to loop",
    "of matmul",
    "peak MiB",
    "states MiB",
    "reconstruction",
    "gradient error",
)
MEBIBYTE = 2**20
LOST = "lost"


def tables(records: Sequence[Record]) -> list[Table]:
    """One for each part. Who has no figures has a row that says so, but among the errors."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["part"] != "error" or not unmeasured(record):
            found.setdefault(record["part"], []).append(record)
    return [TABLES.get(part, cost_table)(lines) for part, lines in found.items()]


def notes(records: Sequence[Record]) -> list[str]:
    """What has to be said below the tables."""
    measured = [record for record in records if not unmeasured(record)]
    raising = any(record["raises"] for record in measured)
    note = ["* check=True raises ReconstructionError here, and no gradient is had"]
    return (note if raising else []) + compile_times(measured) + absences(records)


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


def instead(record: Record) -> str:
    """In place of figures."""
    if skipped(record):
        return "skipped"
    return "refused" if timing.is_fault(record["refused"]) else timing.OUT_OF_MEMORY


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
        cells = (instead(record),) if unmeasured(record) else _cost_cells(record)
        table.add_row(*shown, record["provider"], *cells, style=style)
        last = point
    return table


def _cost_cells(record: Record) -> tuple[str, ...]:
    ratio, share = record["ratio_to_loop"], record.get("share_of_matmul")
    return (
        *labels.time_cells(record),
        "" if ratio is None else f"{ratio:.2f}x",
        "" if share is None else f"{share:.0%}",
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


# ---- largest, overhead ------------------------------------------------------------------------


def largest_table(records: Sequence[Record]) -> Table:
    """One row for each method: the largest N, and the largest batch."""
    columns = ("case", "provider", "largest N", "peak MiB", "largest batch", "peak MiB")
    table = Table(*columns, box=box.SIMPLE, header_style="bold", pad_edge=False)
    for column in table.columns[2:]:
        column.justify, column.no_wrap = "right", True
    found: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        found.setdefault((largest_label(record), record["provider"]), {})[record["axis"]] = record
    last = None
    for (case, provider), by_axis in found.items():
        if last not in (None, case):
            table.add_section()
        cells = [cell for axis in ("N", "batch") for cell in _largest_cells(by_axis.get(axis))]
        kind = next(iter(by_axis.values()))["kind"]
        style = "bold" if kind == "revdeq" else None
        table.add_row(case if case != last else "", provider, *cells, style=style)
        last = case
    return table


def largest_label(record: Record) -> str:
    """The model, beta and what must suffice."""
    if unmeasured(record):
        return case_label(record)
    of = "the GPU's " if record["budget"] != "stated" else ""
    return f"{case_label(record)}, within {of}{in_mebibytes(record['budget_bytes'])} MiB"


def _largest_cells(record: Record | None) -> tuple[str, str]:
    if record is None:
        return ("", "")
    if unmeasured(record):
        return (instead(record), "")
    more = "or more" if record["at_cap"] else ""
    star = "*" if record["raises"] else ""
    words = " ".join(filter(None, (str(record["largest"]), more, star)))
    return words, in_mebibytes(record["peak_bytes"])


def overhead_table(records: Sequence[Record]) -> Table:
    """One row for each method at each depth: the time over the 2N half steps."""
    columns = ("case", "N", "provider", "time of a step", "for each half step", "to loop")
    table = Table(*columns, box=box.SIMPLE, header_style="bold", pad_edge=False)
    for column in (table.columns[1], *table.columns[3:]):
        column.justify, column.no_wrap = "right", True
    last: tuple[str, int] | None = None
    for record in records:
        point = case_label(record), record["steps"]
        if last not in (None, point):
            table.add_section()
        shown = (point[0], str(point[1])) if last != point else ("", "")
        style = "bold" if record["kind"] == "revdeq" else None
        cells = (instead(record),) if unmeasured(record) else _overhead_cells(record)
        table.add_row(*shown, record["provider"], *cells, style=style)
        last = point
    return table


def _overhead_cells(record: Record) -> tuple[str, str, str]:
    each = record["p50_seconds"] / (2 * record["steps"])
    ratio = record["ratio_to_loop"]
    words = "" if ratio is None else f"{ratio:.2f}x"
    return labels.time_cells(record)[0], labels.seconds_cell(each), words


TABLES = {"error": error_table, "largest": largest_table, "overhead": overhead_table}
