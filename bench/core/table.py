"""Columns, declared once for each kind of line, and tables of text made of them.

A table is shown on the terminal (`show/terminal.py`), on the page (`show/html.py`) and in the
documents (`markdown` below).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.core.session import Record


@dataclass(frozen=True)
class Column:
    """A head, and the cell below it for each line (or whatever the rows are made of).

    `always`: also where a line has no figures. In a pivot the name of what is side by side takes
    the place of `{}` in the head.
    """

    head: str
    cell: Callable[[Any], str]
    left: bool = False
    always: bool = False


PROVIDER = Column("provider", lambda record: record["provider"], left=True, always=True)


@dataclass
class Row:
    """The cells; whether the row is one to look at, and whether a group ends with it."""

    cells: tuple[str, ...]
    strong: bool = False
    ends: bool = False


@dataclass
class Table:
    """`left` says of each column whether it is aligned to the left."""

    heads: list[str]
    left: list[bool]
    rows: list[Row] = field(default_factory=list)
    caption: str = ""

    @property
    def markdown(self) -> str:
        """For the documents; of a strong row the last name is bold."""
        rule = ["---" if left else "---:" for left in self.left]
        name = len(self.left) - 1 - self.left[::-1].index(True)
        lines = [self.heads, rule]
        for row in self.rows:
            cells = [*row.cells, *[""] * (len(self.heads) - len(row.cells))]
            if row.strong:
                cells[name] = f"**{cells[name]}**"
            lines.append(cells)
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

    def add(self, cells: tuple[str, ...], *, strong: bool, starts: bool) -> None:
        """A row; a group ends above it if it `starts` another."""
        if starts and self.rows:
            self.rows[-1].ends = True
        self.rows.append(Row(cells, strong))


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A table of ready cells for the documents; the first `left` columns are names."""
    sides = [place < left for place in range(len(heads))]
    return Table(list(heads), sides, [Row(tuple(row)) for row in rows]).markdown


def is_ours(record: Record) -> bool:
    """Whether a line is the project's own."""
    return record["kind"] == "revdeq"


def never(row: object) -> bool:
    """No row is one to look at."""
    return False


def listing(
    rows: Iterable[Any],
    keys: Sequence[Column],
    columns: Sequence[Column],
    *,
    missing: Callable[[Any], str] = lambda row: "",
    strong: Callable[[Any], bool] = is_ours,
) -> Table:
    """A row for each line; the keys stand beside the first one of each group alone.

    `missing` is a word in place of figures, or "".
    """
    every = (*keys, *columns)
    table = Table([column.head for column in every], [column.left for column in every])
    last: tuple[str, ...] | None = None
    for row in rows:
        group = tuple(key.cell(row) for key in keys)
        cells = list(group) if group != last else [""] * len(keys)
        word = missing(row)
        figures = [column for column in columns if not column.always]
        for column in columns:
            if not word or column.always:
                cells.append(column.cell(row))
            else:
                cells.append(word if column is figures[0] else "")
        table.add(tuple(cells), strong=strong(row), starts=group != last and last is not None)
        last = group
    return table


def pivot(
    rows: Iterable[Any],
    keys: Sequence[Column],
    across: Callable[[Any], str],
    columns: Sequence[Column],
    *,
    names: Sequence[str] = (),
    missing: Callable[[Any], str] = lambda row: "",
    strong: Callable[[Any], bool] = never,
) -> Table:
    """A row for each value of the keys; for each value of `across`, the columns side by side.

    `names` are those values, in their order; of lines that are equal in both the last one counts.
    Of several keys the first stands in the first row of its group alone.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        found.setdefault(tuple(key.cell(row) for key in keys), {})[across(row)] = row
    names = names or list(dict.fromkeys(name for by_name in found.values() for name in by_name))
    heads = [column.head.format(name) for name in names for column in columns]
    right = [column.left for _ in names for column in columns]
    table = Table([key.head for key in keys] + heads, [key.left for key in keys] + right)
    last: str | None = None
    for group, by_name in found.items():
        same = len(keys) > 1 and group[0] == last
        cells = ["" if same else group[0], *group[1:]]
        for name in names:
            cells += _cells(by_name.get(name), columns, missing)
        one = next(iter(by_name.values()))
        table.add(tuple(cells), strong=strong(one), starts=len(keys) > 1 and not same)
        last = group[0]
    return table


def _cells(row: Any, columns: Sequence[Column], missing: Callable[[Any], str]) -> list[str]:
    if row is None:
        return [""] * len(columns)
    word = missing(row)
    if word:
        return [word, *[""] * (len(columns) - 1)]
    return [column.cell(row) for column in columns]


@dataclass(frozen=True)
class Family:
    """How lines of one kind are named and shown.

    `label` names the case of a line, `tables` show the measured ones, `notes` are what has to be
    said below. `heading` is the section on how to read them in a page of bench/, and `yardstick`
    the provider that feels a busy machine as the others do.
    """

    name: str
    title: str
    label: Callable[[Record], str]
    tables: Callable[[Sequence[Record]], list[Table]]
    notes: Callable[[Sequence[Record]], list[str]] = lambda records: []
    heading: str | None = None
    yardstick: str | None = None
