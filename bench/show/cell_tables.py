"""The tables of the equilibrium cell in bench/cell.md, and the sentence of README.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.cell.columns import growth, share_of_peak, types
from bench.cell.methods import TIMED
from bench.cell.sizes import DTYPES
from bench.core import labels, stored
from bench.core.session import Record
from bench.core.stored import XEON, XEON_AMX
from bench.core.table import Column, pivot
from bench.show.documents import METHOD, find, provider, with_machine

CASE = ("part", "features", "rows", "threads")


def times(threads: int, folder: str = XEON) -> str:
    """Times of the equilibrium cell, relative to the eager loop, with so many threads."""
    records = sorted((r for r in _timed(folder) if r["threads"] == threads), key=_place)
    keys = (
        Column("", lambda record: record["part"], left=True),
        Column("W", types, left=True),
        Column("features", lambda record: str(record["features"])),
    )

    def time(record: Record) -> str:
        if record["provider"] == "eager loop":
            return labels.seconds_cell(record["p50_seconds"])
        return f"{_to_loop(record, records):.2f}"

    table = pivot(records, keys, provider, (Column("{}", time),))
    table.heads += ["roofline", "`cpu`, of the FMA peak"]
    table.left += [False, False]
    for row, own in zip(table.rows, (r for r in records if r["provider"] == "cpu"), strict=True):
        row.cells += (labels.seconds_cell(own["roofline_seconds"]), share_of_peak(own))
    return with_machine(table, records)


def memory() -> str:
    """The memory of a training step of the cell, deep and shallow."""
    records = [r for r in stored.lines(XEON, "cell.memory") if not r["refused"]]
    keys = (
        Column("W", types, left=True),
        Column("features", lambda record: str(record["features"])),
        replace(METHOD, head="training step"),
    )
    beside = Column("N = {}, MiB", lambda r: labels.in_mebibytes(r["beside_bytes"]))
    digits = Column("digits", lambda r: labels.in_mebibytes(r["digit_bytes"]))
    table = pivot(records, keys, lambda r: str(r["steps"]), (beside, digits))
    deepest = max(record["steps"] for record in records)
    deep = [record for record in records if record["steps"] == deepest]
    table.heads.append("growth")
    table.left.append(False)
    for row, record in zip(table.rows, deep, strict=True):
        row.cells += (growth(record),)
    return with_machine(table, records)


def headline() -> str:
    """The time of the cell on one core relative to the eager loop, in a sentence."""
    features = sorted({record["features"] for record in _timed(XEON)})
    wide, narrow = DTYPES
    spans = {part: _span(XEON, wide, part) for part in TIMED}
    narrow_spans = {part: _span(XEON, narrow, part) for part in TIMED}
    forward, train = (_span(XEON_AMX, narrow, part) for part in TIMED)
    amx = f"{forward} in the forward pass and {train} in training"
    return (
        f"`RevDEQ(LinearCell)` with {features[0]} to {features[-1]} features takes "
        f"{spans['forward']} the time of an eager loop in the forward pass ({narrow}: "
        f"{narrow_spans['forward']}), and {spans['train']} in training ({narrow}: "
        f"{narrow_spans['train']}), on a processor without AMX. With AMX, which both use for "
        f"{narrow}, that takes {amx}."
    )


def _span(folder: str, dtype: str, part: str) -> str:
    """The smallest and the largest time over the loop's, on one core, of what runs by itself."""
    records = [r for r in _timed(folder) if r["threads"] == 1]
    cases = [r for r in records if r["part"] == part and r["dtypes"]["w"] == dtype]
    own = [r for r in cases if r["provider"] == "cpu"]
    ratios = sorted(_to_loop(record, records) for record in own)
    return f"{ratios[0]:.2f}x to {ratios[-1]:.2f}x"


def _timed(folder: str) -> list[Record]:
    """Those with a time."""
    return [r for r in stored.lines(folder, "cell") if not r["refused"]]


def _place(record: Record) -> tuple[int, int, int]:
    """By part, type and features."""
    dtypes = tuple(DTYPES)
    return TIMED.index(record["part"]), dtypes.index(record["dtypes"]["w"]), record["features"]


def _to_loop(record: Record, records: Sequence[Record]) -> float:
    """The time over that of the eager loop in the same case."""
    case = {name: record[name] for name in (*CASE, "dtypes")}
    loop = find(records, provider="eager loop", **case)
    return record["p50_seconds"] / loop["p50_seconds"]
