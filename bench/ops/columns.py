"""The columns of the rows of the ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from bench.core import labels
from bench.core.session import Record
from bench.core.table import PROVIDER, Column, Family, Table, is_ours


def _rate(record: Record) -> str:
    rate = record["gb_per_second"]
    return "" if rate is None else f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"


def _share(record: Record) -> str:
    share = record["share_of_bound"]
    return "" if share is None else f"{share:.0%}"


def _ratio(record: Record) -> str:
    ratio = record["ratio_to_best_alternative"]
    return "" if ratio is None or record["kind"] == "bound" else f"{ratio:.2f}x"


OP = Column("op", lambda record: f"`{labels.op_label(record)}`", left=True, always=True)
TYPES = Column("types", labels.types_label, left=True, always=True)
PLACE = Column("size, threads", labels.place_label, left=True, always=True)
TIME = Column("time", labels.time_cell)
SPREAD = Column("p20 .. p80", labels.spread_cell)
RATE = Column("GB/s", _rate)
SHARE = Column("of copy_", _share)
COPY = replace(SHARE, head="of `copy_`")
BEST = Column("to best", _ratio)


def missing(record: Record) -> str:
    """In place of figures."""
    return "refused" if record["refused"] else ""


def tables(records: Sequence[Record]) -> list[Table]:
    """A row for each provider; the name of a case beside them, one line of it in each row."""
    columns = (PROVIDER, TIME, SPREAD, RATE, SHARE, BEST)
    heads = ["case", *(column.head for column in columns)]
    table = Table(heads, [True, *(column.left for column in columns)])
    for group in labels.groups(records):
        rows = zip_longest(labels.case_labels(group[0]), group)
        for i, (label, record) in enumerate(rows):
            cells = [label or ""]
            if record is not None and record["refused"]:
                cells += [record["provider"], missing(record)]
            elif record is not None:
                cells += [column.cell(record) for column in columns]
            strong = record is not None and is_ours(record)
            table.add(tuple(cells), strong=strong, starts=i == 0)
    return [table]


OPS = Family(
    "ops",
    "The ops",
    lambda record: ", ".join(labels.case_labels(record)),
    tables,
    heading="How to read the figures",
    yardstick="copy_",
)
