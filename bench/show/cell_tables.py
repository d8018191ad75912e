"""The stored lines of the equilibrium cell as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from bench.core import labels
from bench.core.session import Record


def case_label(record: Record) -> str:
    """The part, the features and the steps."""
    return f"{record['part']}, {record['features']} features, N = {record['steps']}"


def tables(records: Sequence[Record]) -> list[Table]:
    """Times, and which share of the roofline they are."""
    columns = ("case", "rows", "provider", "time", "p20 .. p80", "roofline", "of the roofline")
    table = Table(*columns, box=box.SIMPLE, header_style="bold", pad_edge=False)
    for column in (table.columns[1], *table.columns[3:]):
        column.justify = "right"
    last: tuple[str, int] | None = None
    for record in records:
        point = case_label(record), record["rows"]
        if last is not None and point != last:
            table.add_section()
        shown = (point[0], str(point[1])) if point != last else ("", "")
        style = "bold" if record["kind"] == "revdeq" else None
        table.add_row(*shown, record["provider"], *_cells(record), style=style)
        last = point
    return [table]


def _cells(record: Record) -> tuple[str, ...]:
    least = labels.seconds_cell(record["roofline_seconds"])
    if record["refused"]:
        return ("refused", "", least, "")
    share = f"{record['share_of_roofline']:.1%}"
    return (*labels.time_cells(record), least, share)
