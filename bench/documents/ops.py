"""The table of the ops in README.md."""

from __future__ import annotations

from collections.abc import Sequence

from bench import report
from bench.documents import stored
from bench.session import Record

COLUMNS = ("op", "types", "size, threads", "provider", "time", "GB/s", "of `copy_`", "to best")
SHOWN = ("half_step", "half_step_exact")


def half_steps() -> str:
    """The half steps with all cores: the machine, and the table."""
    records = [
        record
        for record in stored.lines(stored.XEON, "ops")
        if record["benchmark"] in SHOWN and record["threads"] == 2
    ]
    return markdown(records)


def markdown(records: Sequence[Record]) -> str:
    """One table for each machine and commit, each under the line that names them."""
    if not records:
        raise ValueError("results: expected at least one line, got none; run `python -m bench`")
    by_machine: dict[str, list[Record]] = {}
    for record in records:
        by_machine.setdefault(report.heading(record), []).append(record)
    parts = [f"{heading}\n\n{_table(lines)}" for heading, lines in by_machine.items()]
    return "\n\n".join(parts)


def _table(records: Sequence[Record]) -> str:
    rows: list[tuple[str, ...]] = []
    for group in report.groups(records):
        for position, record in enumerate(group):
            op, types, place = report.case_labels(record)
            case = (f"`{op}`", types, place) if position == 0 else ("", "", "")
            time, _, rate, share, ratio = report.figures(record)
            name = record["provider"]
            shown = f"**{name}**" if record["kind"] == "revdeq" else name
            rows.append((*case, shown, time, rate, share, ratio))
    return stored.table(COLUMNS, rows, left=4)
