"""Lines that are read alike: the ceilings, the ops, the cell, the solver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from bench.core import labels, timing
from bench.core.session import Record
from bench.profile import nsight, profiling
from bench.show import cell_tables as cell_report
from bench.show import profile_tables, tables
from bench.show import solver_tables as solver_report


@dataclass(frozen=True)
class Family:
    """How lines of one kind are named and printed.

    `label` names the case of a line, `tables` print the measured ones, `notes` are what has to be
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


def _solver_tables(records: Sequence[Record]) -> list[Table]:
    profiles = [record for record in records if record["part"] == profiling.PART]
    rest = [record for record in records if record["part"] != profiling.PART]
    measured = [record for record in profiles if not record["refused"]]
    return solver_report.tables(rest) + profile_tables.tables(measured)


def _solver_label(record: Record) -> str:
    axis = f", largest {record['axis']}" if record.get("axis") else f", N = {record['steps']}"
    return f"{record['part']}: {solver_report.case_label(record)}{axis}"


CEILINGS = Family(
    "ceilings",
    "The ceilings",
    lambda record: record["op"],
    lambda records: [tables.ceilings_table(records)],
)
OPS = Family(
    "ops",
    "The ops",
    lambda record: ", ".join(labels.case_labels(record)),
    lambda records: [tables.table_of(records)],
    heading="How to read the figures",
    yardstick="copy_",
)
CELL = Family(
    "cell",
    "The equilibrium cell",
    lambda record: f"{cell_report.case_label(record)}, {record['rows']} rows",
    cell_report.tables,
    heading="How to read the cell's figures",
    yardstick="eager loop",
)
SOLVER = Family(
    "solver",
    "The solver",
    _solver_label,
    _solver_tables,
    solver_report.notes,
    heading="How to read the solver's figures",
    yardstick="lerp loop",
)
NSIGHT = Family(
    nsight.NAME,
    "The kernels, by Nsight Compute",
    lambda record: record["op"],
    profile_tables.nsight_tables,
    profile_tables.nsight_notes,
)
FAMILIES = (CEILINGS, OPS, CELL, SOLVER, NSIGHT)


def of(record: Record) -> Family:
    """Lines of the ops hold the name of their file as `benchmark`, others that of the family."""
    named = [family for family in FAMILIES if family.name == record["benchmark"]]
    return named[0] if named else OPS


def split(records: Iterable[Record]) -> dict[str, list[Record]]:
    """By name of the family, in their order, the empty ones too."""
    found: dict[str, list[Record]] = {family.name: [] for family in FAMILIES}
    for record in records:
        found[of(record).name].append(record)
    return found


def refusals(records: Iterable[Record]) -> list[str]:
    """Who has no figures, and why, in full."""
    return [
        f"{'refused' if timing.is_fault(r['refused']) else 'no figures'}: {of(r).label(r)}, "
        f"{r['provider']}: {r['refused']}"
        for r in records
        if r["refused"]
    ]
