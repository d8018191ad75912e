"""The columns of the solver's rows: the cost of a solve, its errors, the largest that fits."""

from __future__ import annotations

from collections.abc import Sequence

from bench.core import labels, timing
from bench.core.labels import in_mebibytes
from bench.core.session import Record
from bench.core.table import PROVIDER, Column, Family, Table, is_ours, listing, pivot

LOST = "lost"


def skipped(record: Record) -> bool:
    """Whether the provider was not there to be measured. Older lines do not know the word."""
    return bool(record.get("skipped"))


def unmeasured(record: Record) -> bool:
    """Whether a line holds a reason instead of figures."""
    return bool(record["refused"]) or skipped(record)


def instead(record: Record) -> str:
    """What a table shows instead of figures; "" where there are figures."""
    if skipped(record):
        return "skipped"
    if not record["refused"]:
        return ""
    return "refused" if timing.is_fault(record["refused"]) else timing.OUT_OF_MEMORY


def case_label(record: Record) -> str:
    """The model and beta."""
    return f"{record['op']}, beta {record['beta']:g}"


def error_cell(record: Record, name: str) -> str:
    """An error; starred where a user gets an exception in its place; empty where there is none."""
    value = record[name]
    if value is None:
        if record["adjoint"] != "reversible" and name != "gradient_error":
            return ""
        text = LOST
    else:
        text = "0" if value == 0 else f"{value:.1e}"
    return f"{text} *" if record["raises"] else text


def both_errors(record: Record) -> str:
    """Of the state and of the gradient."""
    state = error_cell(record, "reconstruction_error").removesuffix(" *")
    return f"{state}, {error_cell(record, 'gradient_error')}"


def each_half_step(record: Record) -> float:
    """Seconds."""
    return record["p50_seconds"] / (2 * record["steps"])


def amount(record: Record) -> str:
    """The largest that fits; "or more" if it is the largest that was tried."""
    return f"{record['largest']}{' or more' if record['at_cap'] else ''}"


def largest_label(record: Record) -> str:
    """The model, beta and what must suffice."""
    if unmeasured(record):
        return case_label(record)
    of = "the GPU's " if record["budget"] != "stated" else ""
    return f"{case_label(record)}, within {of}{in_mebibytes(record['budget_bytes'])} MiB"


def _ratio(record: Record) -> str:
    ratio = record["ratio_to_loop"]
    return "" if ratio is None else f"{ratio:.2f}x"


def _share(record: Record) -> str:
    share = record.get("share_of_matmul")
    return "" if share is None else f"{share:.0%}"


CASE = Column("case", case_label, left=True)
N = Column("N", lambda record: str(record["steps"]))
TIME = Column("time", labels.time_cell)
RATIO = Column("to loop", _ratio)
PEAK = Column("peak MiB", lambda record: in_mebibytes(record["peak_bytes"]))
COST = (
    PROVIDER,
    TIME,
    Column("p20 .. p80", labels.spread_cell),
    RATIO,
    Column("of matmul", _share),
    PEAK,
    Column("states MiB", lambda record: in_mebibytes(record["state_bytes"])),
    Column("reconstruction", lambda record: error_cell(record, "reconstruction_error")),
    Column("gradient error", lambda record: error_cell(record, "gradient_error")),
)
EACH = Column("for each half step", lambda record: labels.seconds_cell(each_half_step(record)))
OVERHEAD = (PROVIDER, Column("time of a step", labels.time_cell), EACH, RATIO)
BUDGET = Column("case", largest_label, left=True)
LARGEST = Column("largest {}", lambda r: f"{amount(r)} *" if r["raises"] else amount(r))


def tables(records: Sequence[Record]) -> list[Table]:
    """One for each part. A row without figures says why, except among the errors."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["part"] != "error" or not unmeasured(record):
            found.setdefault(record["part"], []).append(record)
    return [table for part, lines in found.items() for table in TABLES.get(part, cost)(lines)]


def cost(records: Sequence[Record]) -> list[Table]:
    """One row for each method at each depth."""
    return [listing(records, (CASE, N), COST, missing=instead)]


def overhead(records: Sequence[Record]) -> list[Table]:
    """One row for each method at each depth: the time over the 2N half steps."""
    return [listing(records, (CASE, N), OVERHEAD, missing=instead)]


def errors(records: Sequence[Record]) -> list[Table]:
    """One row for each beta and depth; in each cell the errors of the state and of the gradient."""
    columns = [Column("{}", both_errors)]
    table = pivot(records, (CASE, N), PROVIDER.cell, columns)
    table.caption = "reconstruction error of the initial state, and error of the gradient"
    return [table]


def largest(records: Sequence[Record]) -> list[Table]:
    """One row for each method: the largest N, and the largest batch."""
    axes = {"names": ("N", "batch"), "missing": instead, "strong": is_ours}
    return [pivot(records, (BUDGET, PROVIDER), lambda r: r["axis"], (LARGEST, PEAK), **axes)]


def profile(records: Sequence[Record]) -> list[Table]:
    """For each model, beta and depth: the parts of a step, on the host and on the device."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if not unmeasured(record):
            case = f"{case_label(record)}, N = {record['steps']}"
            found.setdefault(case, []).append(record)
    return [
        _parts(f"{case}: {where}", lines, f"{where}_seconds")
        for case, lines in found.items()
        for where in ("host", "device")
        if all(line[f"{where}_seconds"] for line in lines)
    ]


def _parts(title: str, records: Sequence[Record], name: str) -> Table:
    """A row for each part, the step, and the step without profiler."""
    ends = {"the step": "step_seconds", "a step without profiler": "plain_seconds"}
    rows = [(part, r, r[name][part]) for part in records[0][name] for r in records]
    rows += [(what, r, r[of]) for what, of in ends.items() for r in records]

    def share(row: tuple[str, Record, float]) -> str:
        _, record, seconds = row
        return f"{1e3 * seconds:.2f} ms {seconds / record['step_seconds']:4.0%}"

    part = Column(title, lambda row: row[0], left=True)
    table = pivot(rows, (part,), lambda row: row[1]["provider"], (Column("{}", share),))
    table.rows[-3].ends = table.rows[-2].strong = True
    return table


TABLES = {"error": errors, "largest": largest, "overhead": overhead, "profile": profile}
"""By part, where it is not that of the costs."""


def notes(records: Sequence[Record]) -> list[str]:
    """The notes below the tables."""
    measured = [record for record in records if not unmeasured(record)]
    raising = any(record["raises"] for record in measured)
    note = ["* check=True raises ReconstructionError here, and no gradients are written"]
    return (note if raising else []) + compile_times(measured) + absences(records)


def absences(records: Sequence[Record]) -> list[str]:
    """Implementations that are not installed, by reason."""
    names: dict[str, dict[str, None]] = {}
    for record in records:
        if skipped(record):
            names.setdefault(record["skipped"], {})[record["provider"]] = None
    return [f"skipped: {', '.join(found)}: {reason}" for reason, found in names.items()]


def compile_times(records: Sequence[Record]) -> list[str]:
    """Compile times of the implementations that report them; the times above exclude them."""
    seconds: dict[str, list[float]] = {}
    for record in records:
        if record.get("compile_seconds") is not None:
            seconds.setdefault(record["provider"], []).append(record["compile_seconds"])
    return [
        f"{name}: compiled in {min(taken):.1f} .. {max(taken):.1f} s, not in the times"
        for name, taken in seconds.items()
    ]


def label(record: Record) -> str:
    """What a line measures."""
    axis = f", largest {record['axis']}" if record.get("axis") else f", N = {record['steps']}"
    return f"{record['part']}: {case_label(record)}{axis}"


SOLVER = Family(
    "solver",
    "The solver",
    label,
    tables,
    notes,
    heading="How to read the solver's figures",
    yardstick="lerp loop",
)
