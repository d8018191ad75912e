"""What a run prints: the tables of a benchmark, what has to be said below them, the machine."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box, table
from rich.console import Console

from bench import suite
from bench.core import labels, stored
from bench.core.session import Record
from bench.core.table import Table


def show(records: Sequence[Record], title: str, console: Console) -> None:
    """The tables of one benchmark, and below them whatever has to be said."""
    if not records:
        return
    console.rule(title, align="left")
    family = suite.family_of(records[0])
    for found in family.tables(records):
        console.print(printed(found))
    for note in family.notes(records):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    for text in suite.refusals(records):
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


def printed(found: Table) -> table.Table:
    """A table as rich prints it; figures are not broken into lines."""
    shown = table.Table(box=box.SIMPLE, header_style="bold", pad_edge=False)
    for head, left in zip(found.heads, found.left, strict=True):
        shown.add_column(head, justify="left" if left else "right", no_wrap=not left)
    for row in found.rows:
        style = "bold" if row.strong else None
        shown.add_row(*row.cells, style=style, end_section=row.ends)
    shown.caption = found.caption or None
    return shown


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
