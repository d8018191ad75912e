"""The tables of the ops: in README.md a line for each case, in bench/ops.md every provider."""

from __future__ import annotations

from collections.abc import Sequence

from bench.core import labels, stored
from bench.core.session import Record
from bench.show import tables

COLUMNS = ("op", "types", "size, threads", "provider", "time", "GB/s", "of `copy_`", "to best")
SHORT = ("op", "types", "time", "of `copy_`", "eager takes", "torch.compile takes")
SHOWN = ("half_step", "exact_step")


def half_steps() -> str:
    """The half steps with all cores: the machine, and the table."""
    return markdown(_half_steps())


def summary() -> str:
    """The same in a line for each case: this project's time, and how often the others take it.

    Of what is written in eager mode the fastest.
    """
    rows = []
    for group in labels.groups(_half_steps()):
        seconds = {record["provider"].split()[0]: record["p50_seconds"] for record in group}
        (ours,) = (record for record in group if record["kind"] == "revdeq")
        op, types, _ = labels.case_labels(ours)
        time, _, _, share, _ = tables.figures(ours)
        eager = min(seconds[name] for name in ("eager", "lerp_") if name in seconds)
        ratios = (other / ours["p50_seconds"] for other in (eager, seconds["compile"]))
        times = (f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x" for ratio in ratios)
        rows.append((f"`{op}`", types, time, share, *times))
    return tables.markdown(SHORT, rows, left=2)


def _half_steps() -> list[Record]:
    return [
        record
        for record in stored.lines(stored.XEON, "ops")
        if record["benchmark"] in SHOWN and record["threads"] == 2
    ]


def markdown(records: Sequence[Record]) -> str:
    """One table for each machine and commit, each under the line that names them."""
    if not records:
        raise ValueError("results: expected at least one line, got none; run `python -m bench`")
    by_machine: dict[str, list[Record]] = {}
    for record in records:
        by_machine.setdefault(labels.heading(record), []).append(record)
    parts = [f"{heading}\n\n{_table(lines)}" for heading, lines in by_machine.items()]
    return "\n\n".join(parts)


def _table(records: Sequence[Record]) -> str:
    rows: list[tuple[str, ...]] = []
    for group in labels.groups(records):
        for position, record in enumerate(group):
            op, types, place = labels.case_labels(record)
            case = (f"`{op}`", types, place) if position == 0 else ("", "", "")
            time, _, rate, share, ratio = tables.figures(record)
            name = record["provider"]
            shown = f"**{name}**" if record["kind"] == "revdeq" else name
            rows.append((*case, shown, time, rate, share, ratio))
    return tables.markdown(COLUMNS, rows, left=4)
