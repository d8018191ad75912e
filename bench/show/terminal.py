"""What a run prints: the tables of a benchmark, the notes below them, the machine."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box, table
from rich.console import Console

from bench import suite
from bench.core import labels, stored
from bench.core.session import Record
from bench.core.table import Row, Table

MARKED = (
    f"{labels.DISTURBED} behind a time: other programs took more than half a core while it was "
    "measured"
)
# What a name takes at most of the width of a terminal that is narrow.
NAME = 20
# Columns of numbers that name a row.
KEYS = ("N", "rows")
# Columns that a narrow terminal does without, the least important first. The lines on disk and the
# report have them.
DISPENSABLE = (
    "p20 .. p80", "issue bound", "of matmul", "states MiB", "resident MiB", "of the roofline",
    "GB/s", "reconstruction", "GFLOP/s", "noise", "roofline", "digits MiB",
)  # fmt: skip


def show(records: Sequence[Record], title: str, console: Console, note: str = "") -> None:
    """The tables of one benchmark, and the notes below them."""
    if records:
        console.rule(title, align="left")
        family = suite.family_of(records[0])
        for found in family.tables(records):
            print_table(console, found)
        notes = [MARKED] if any(map(stored.disturbed, records)) else []
        for text in [*family.notes(records), *notes]:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        for text in suite.refusals(records):
            console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    if note:
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)


def out_of_time(name: str, minutes: float | None) -> str:
    """What is said of a benchmark that the time of the run did not suffice for."""
    return (
        f"{name}: stopped to end the run within {minutes:g} minutes; "
        f"`python -m bench --only {name}` measures all of it"
    )


def print_table(console: Console, found: Table) -> None:
    """The table; where it is wider than the console, without some columns, or in several parts."""
    for part in fitting(found, console):
        console.print(printed(part))


def fitting(found: Table, console: Console) -> list[Table]:
    """Tables that hold these columns, the dispensable ones as long as there is room."""
    for head in DISPENSABLE:
        if fits(found, console):
            return [found]
        if head in found.heads:
            kept = [i for i, name in enumerate(found.heads) if name != head]
            found = columns_of(found, kept)
    named = [left or head in KEYS for head, left in zip(found.heads, found.left, strict=True)]
    names = [i for i, is_name in enumerate(named) if is_name]
    figures = [i for i, is_name in enumerate(named) if not is_name]
    parts: list[list[int]] = []
    for i in figures:
        if not parts or not fits(columns_of(found, [*names, *parts[-1], i]), console):
            parts.append([])
        parts[-1].append(i)
    return [columns_of(found, sorted([*names, *part])) for part in parts]


def fits(found: Table, console: Console) -> bool:
    """Whether no figure is cut off, and names have room for `NAME` characters of a line."""
    return 2 + sum(3 + width for width in widths(found)) - 3 <= console.width


def widths(found: Table) -> list[int]:
    """What each column needs: its longest figure; of names, which are broken into lines, less."""
    columns = [
        [head, *(row.cells[i] for row in found.rows if i < len(row.cells))]
        for i, head in enumerate(found.heads)
    ]
    longest = [max(map(len, cells)) for cells in columns]
    return [min(n, NAME) if left else n for n, left in zip(longest, found.left, strict=True)]


def columns_of(found: Table, kept: Sequence[int]) -> Table:
    """The table with these columns alone."""

    def chosen(cells: Sequence[str]) -> tuple[str, ...]:
        return tuple(cells[i] for i in kept if i < len(cells))

    rows = [Row(chosen(row.cells), row.strong, row.ends) for row in found.rows]
    heads, left = [found.heads[i] for i in kept], [found.left[i] for i in kept]
    return Table(heads, left, rows, found.caption)


def printed(found: Table) -> table.Table:
    """A table as rich prints it; figures are not broken into lines."""
    shown = table.Table(box=box.SIMPLE, header_style="bold", pad_edge=False)
    for head, left, width in zip(found.heads, found.left, widths(found), strict=True):
        if left:
            shown.add_column(head, overflow="fold", min_width=width)
        else:
            shown.add_column(head, justify="right", no_wrap=True)
    for row in found.rows:
        style = "bold" if row.strong else None
        shown.add_row(*row.cells, style=style, end_section=row.ends)
    shown.caption = found.caption or None
    return shown


def print_machine(console: Console, records: Sequence[Record]) -> None:
    """The machine and versions, and whether the machine had other work."""
    console.print(labels.heading(records[0]), highlight=False, soft_wrap=True)
    busy = sum(map(stored.busy, records))
    if busy:
        console.print(
            f"busy machine: other programs were running for {busy} of {len(records)} rows",
            style="yellow",
            highlight=False,
        )
