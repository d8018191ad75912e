"""The tables of the ops and of the ceilings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from rich import box
from rich.console import Console
from rich.table import Table

from bench.core import labels, stored
from bench.core.session import Record

COLUMNS = ("case", "provider", "time", "p20 .. p80", "GB/s", "of copy_", "to best")


def figures(record: Record) -> tuple[str, str, str, str, str]:
    """Time, spread, GB/s, share of the bound, ratio to the best alternative."""
    if record["refused"]:
        return ("refused", "", "", "", "")
    rate, share = record["gb_per_second"], record["share_of_bound"]
    ratio = record["ratio_to_best_alternative"]
    return (
        *labels.time_cells(record),
        "" if rate is None else f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}",
        "" if share is None else f"{share:.0%}",
        "" if ratio is None or record["kind"] == "bound" else f"{ratio:.2f}x",
    )


def table_of(records: Sequence[Record]) -> Table:
    """One row for each provider of each case."""
    table = Table(*COLUMNS, box=box.SIMPLE, header_style="bold", pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    for group in labels.groups(records):
        # The name of a case stands in the first column, one line of it beside each provider.
        for label, record in zip_longest(labels.case_labels(group[0]), group, fillvalue=None):
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
            cells = (
                labels.seconds_cell(record["fastest_seconds"]),
                labels.time_cells(record)[1],
                *shown,
            )
        table.add_row(record["provider"], *cells)
    return table


def print_machine(console: Console, record: Record) -> None:
    """The line that figures are read with, and whether the machine had other work."""
    console.print(labels.heading(record), highlight=False)
    if record["load_average"] > stored.BUSY:
        console.print(
            f"other work was running (load average {record['load_average']} at the start): "
            "these are figures of a busy machine",
            style="yellow",
            highlight=False,
        )


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A markdown table; all columns but the first `left` ones are aligned to the right."""
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, rule, *rows))
