"""The columns of the rows of the equilibrium cell: times and their roofline, memory."""

from __future__ import annotations

from collections.abc import Sequence

from bench.core import labels
from bench.core.labels import in_mebibytes
from bench.core.session import Record
from bench.core.table import PROVIDER, Column, Family, Table, listing

NAME = "cell"
MEMORY = "memory"


def case_label(record: Record) -> str:
    """The part, the type of the parameters, the features, the steps and the threads."""
    label = f"{record['part']}, {types(record)}, {record['features']} features"
    if record["part"] != MEMORY:
        label += f", N = {record['steps']}"
    threads = record["threads"]
    return label if threads is None else f"{label}, {threads} thread{'s' if threads > 1 else ''}"


def types(record: Record) -> str:
    """That of the parameters, in short."""
    name: str = record["dtypes"]["w"]
    return labels.SHORT_TYPES.get(name, name)


def roofline(record: Record) -> str:
    """As a time."""
    return labels.seconds_cell(record["roofline_seconds"])


def issued(record: Record) -> str:
    """The issue bound as a time, and its share of the time; nothing where none is known."""
    bound = record.get("issue_seconds")
    return f"{labels.seconds_cell(bound)}, {record['share_of_issue']:.1%}" if bound else ""


def share_of_peak(record: Record) -> str:
    """Of the multiply-adds that the cores can do; nothing where that is not known."""
    share = record["share_of_fma"]
    return "" if share is None else f"{share:.0%}"


def growth(record: Record) -> str:
    """What is held beside the digits, over the same at the fewest steps."""
    return f"{record['beside_growth']:.3f}"


KEYS = (Column("case", case_label, left=True), Column("rows", lambda record: str(record["rows"])))
COLUMNS = (
    PROVIDER,
    Column("time", labels.time_cell),
    Column("p20 .. p80", labels.spread_cell),
    Column("GFLOP/s", lambda record: f"{1e3 * record['tflop_per_second']:.3g}"),
    Column("of the FMA peak", share_of_peak),
    Column("roofline", roofline, always=True),
    Column("of the roofline", lambda record: f"{record['share_of_roofline']:.1%}"),
    Column("issue bound", issued),
)
IN_MEMORY = (
    PROVIDER,
    Column("N", lambda record: str(record["steps"]), always=True),
    Column("peak MiB", lambda record: in_mebibytes(record["peak_bytes"])),
    Column("digits MiB", lambda record: in_mebibytes(record["digit_bytes"])),
    Column("beside the digits", lambda record: in_mebibytes(record["beside_bytes"])),
    Column("growth", growth),
    Column("resident MiB", lambda record: in_mebibytes(record["resident_bytes"])),
)


def missing(record: Record) -> str:
    """In place of figures."""
    return "refused" if record["refused"] else ""


def tables(records: Sequence[Record]) -> list[Table]:
    """The times of all parts, and the memory."""
    timed = [record for record in records if record["part"] != MEMORY]
    held = [record for record in records if record["part"] == MEMORY]
    found = ((timed, COLUMNS), (held, IN_MEMORY))
    return [listing(r, KEYS, columns, missing=missing) for r, columns in found if r]


FAMILY = Family(
    NAME,
    "The equilibrium cell",
    lambda record: f"{case_label(record)}, {record['rows']} rows",
    tables,
    heading="How to read the cell's figures",
    yardstick="eager loop",
)
