"""Tables: one declaration of the columns, shown on the terminal, the page and in the documents."""

from __future__ import annotations

from typing import Any

from bench.core.table import PROVIDER, Column, listing, pivot
from bench.show import html, terminal

CASE = Column("case", lambda line: line["op"], left=True)
TIME = Column("time of {}", lambda line: f"{line['time']} ms")
SHARE = Column("share", lambda line: f"{line['time']}%")


def line(op: str, provider: str, time: int, **changes: Any) -> dict[str, Any]:
    kind = "revdeq" if provider == "own" else "alternative"
    return {"op": op, "provider": provider, "kind": kind, "time": time} | changes


LINES = [line("a", "own", 1), line("a", "loop", 2, refused=True), line("b", "own", 3)]


def listed() -> Any:
    missing = lambda line: "refused" if line.get("refused") else ""  # noqa: E731
    return listing(LINES, (CASE,), (PROVIDER, TIME, SHARE), missing=missing)


def test_a_listing_names_a_case_once_and_says_who_has_no_figures() -> None:
    rows = [(row.cells, row.strong, row.ends) for row in listed().rows]
    assert rows == [
        (("a", "own", "1 ms", "1%"), True, False),
        (("", "loop", "refused", ""), False, True),
        (("b", "own", "3 ms", "3%"), True, False),
    ]


def test_the_same_table_on_the_terminal_the_page_and_in_a_document() -> None:
    table = listed()
    shown = terminal.printed(table)
    assert [column.justify for column in shown.columns] == ["left", "left", "right", "right"]
    assert [list(column.cells) for column in shown.columns][2] == ["1 ms", "refused", "3 ms"]
    page = html.table_html(table)
    assert '<tr class="bold"><td>a</td><td>own</td><td class="right">1 ms</td>' in page
    assert '<tr class="end"><td></td><td>loop</td><td class="right">refused</td>' in page
    assert table.markdown.splitlines()[1:4] == [
        "| --- | --- | ---: | ---: |",
        "| a | **own** | 1 ms | 1% |",
        "|  | loop | refused |  |",
    ]


def test_a_pivot_has_a_column_for_each_name_and_the_last_of_equal_lines() -> None:
    lines = [*LINES, line("b", "loop", 4), line("b", "loop", 5)]
    table = pivot(lines, (CASE,), lambda line: line["provider"], (TIME, SHARE))
    assert table.heads == ["case", "time of own", "share", "time of loop", "share"]
    assert [row.cells for row in table.rows] == [
        ("a", "1 ms", "1%", "2 ms", "2%"),
        ("b", "3 ms", "3%", "5 ms", "5%"),
    ]
    (a, _) = pivot(lines[:1] + lines[2:], (CASE,), PROVIDER.cell, (TIME,)).rows
    assert a.cells == ("a", "1 ms", "")
