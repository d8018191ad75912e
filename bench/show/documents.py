"""The tables of the ops and the solver in bench/*.md and README.md, and a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from bench.core import labels, stored
from bench.core.session import Record
from bench.core.stored import EPYC, XEON, XEON_AMX
from bench.core.table import Column, Table, is_ours, listing, markdown, pivot
from bench.ops.columns import BEST, COPY, OP, PLACE, RATE, TIME, TYPES
from bench.ops.columns import missing as no_time
from bench.profile.attribution import PARTS
from bench.solver import columns as solver
from bench.solver.columns import N, unmeasured

NAMES = {
    "mlp": "MLP",
    "block": "block",
    "language": "language block",
    "vision": "vision block",
    "cell": "cell",
    "tiny": "tiny",
}


def provider(record: Record) -> str:
    """As code, in a column of its own or at the head of one."""
    return f"`{record['provider']}`"


def find(records: Iterable[Record], **wanted: object) -> Record:
    """The one line with these values; of lines that were measured twice the last one."""
    found = [r for r in records if all(r.get(name) == value for name, value in wanted.items())]
    if not found:
        raise ValueError(f"bench/results: expected a line with {wanted}, got none")
    return found[-1]


def with_machine(table: Table, records: Sequence[Record]) -> str:
    """The table, and the line that its figures are read with."""
    return f"{table.markdown}\n\n{labels.provenance(records)}"


# ---- the ops ----------------------------------------------------------------------------------


def half_steps() -> str:
    """The half steps with all cores: the machine, and every provider."""
    return of_ops(_half_steps())


def summary() -> str:
    """One row per case: this project's time, and its speedup over the baselines.

    For eager mode, over the fastest baseline.
    """
    rows = []
    for group in labels.groups(_half_steps()):
        seconds = {record["provider"].split()[0]: record["p50_seconds"] for record in group}
        (ours,) = filter(is_ours, group)
        eager = min(seconds[name] for name in ("eager", "lerp_") if name in seconds)
        ratios = (other / ours["p50_seconds"] for other in (eager, seconds["compile"]))
        times = (f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x" for ratio in ratios)
        rows.append((*(column.cell(ours) for column in (OP, TYPES, TIME, COPY)), *times))
    heads = ("op", "types", "time", "of `copy_`", "over eager", "over `torch.compile`")
    return markdown(heads, rows, left=2)


def _half_steps() -> list[Record]:
    lines = stored.lines(XEON, "ops")
    shown = ("half_step", "exact_step")
    return [r for r in lines if r["benchmark"] in shown and r["threads"] == 2]


def of_ops(records: Sequence[Record]) -> str:
    """One table for each machine and commit, each under the line that names them."""
    if not records:
        raise ValueError("results: expected at least one line, got none; run `python -m bench`")
    by_machine: dict[str, list[Record]] = {}
    for record in records:
        by_machine.setdefault(labels.heading(record), []).append(record)
    keys = (OP, TYPES, PLACE)
    columns = (solver.PROVIDER, TIME, RATE, COPY, BEST)
    tables = {m: listing(r, keys, columns, missing=no_time) for m, r in by_machine.items()}
    return "\n\n".join(f"{machine}\n\n{table.markdown}" for machine, table in tables.items())


# ---- figures of the solver, in the few digits that the documents have room for ----------------


def star(cell: Callable[[Record], str]) -> Callable[[Record], str]:
    """Marked where `solve` raises."""
    return lambda record: f"{cell(record)} \\*" if record["raises"] else cell(record)


def ratio(record: Record) -> str:
    """The time over the loop's."""
    return f"{record['ratio_to_loop']:.2f}" if record["ratio_to_loop"] != 1 else "1"


def error(record: Record) -> str:
    """Of the gradient, two digits."""
    return f"{record['gradient_error']:.1e}".replace("e-0", "e-")


PEAK = solver.PEAK.cell
METHOD = Column("", provider, left=True)

# ---- cost -------------------------------------------------------------------------------------

METHODS = {
    "lerp loop": "loop",
    "backprop exact": "backprop",
    "checkpoint exact": "checkpoint",
    "reversible exact": "reversible, exact",
    "reversible float32": "float32",
    "reversible float64": "float64",
}


def cost() -> str:
    """Time and memory at beta 0.5, for each model and two depths."""
    records = [r for r in stored.lines(EPYC, "solve.cost") if r["beta"] == 0.5]
    return _cost(records, ("mlp", "block"), (8, 32)).markdown


def paper_blocks() -> str:
    """The same for the paper's blocks, scaled down."""
    records = [r for r in stored.lines(EPYC, "solve.cost") if r["op"] in ("language", "vision")]
    return with_machine(_cost(records, ("language", "vision"), (8,)), records)


def _cost(records: Sequence[Record], models: Sequence[str], depths: Sequence[int]) -> Table:
    figures = {"time to the loop's": ratio, "peak in MiB": PEAK}
    rows = [
        (f"{NAMES[model]}, {what}", cell, find(records, op=model, steps=depth, provider=method))
        for model in models
        for what, cell in figures.items()
        for depth in depths
        for method in METHODS
    ]
    keys = (Column("", lambda row: row[0], left=True), Column("N", lambda row: N.cell(row[2])))
    cell = Column("{}", lambda row: star(row[1])(row[2]))
    return pivot(rows, keys, lambda row: METHODS[row[2]["provider"]], (cell,))


def headline() -> str:
    """The cost of a reversible step, in a sentence."""
    records = stored.lines(XEON_AMX, "solve.peers")
    own, loop = (
        find(records, op="mlp", steps=32, provider=method)
        for method in ("reversible exact", "lerp loop")
    )
    return (
        f"{PEAK(own)} MiB instead of the loop's {PEAK(loop)} MiB, "
        f"for {ratio(own)}x its training time."
    )


# ---- options, peers, largest, overhead, profile -----------------------------------------------


def options() -> str:
    """The cost of the options, at N = 4."""
    columns = (Column("{}: to loop", ratio), Column("peak MiB", PEAK))
    return _beside(stored.lines(XEON_AMX, "solve.options"), 4, columns)


def compiled() -> str:
    """The solver and the loop, each eager and compiled, at N = 8: to the loop."""
    records = _compiled()
    return pivot(_others(records), (METHOD,), _model, (Column("{}", ratio),)).markdown


def to_compiled() -> str:
    """The same, to the compiled loop."""
    records = _compiled()

    def over(record: Record) -> str:
        loop = find(records, op=record["op"], provider="lerp loop, compiled")
        return f"{record['p50_seconds'] / loop['p50_seconds']:.2f}"

    table = pivot(_others(records), (METHOD,), _model, (Column("{}", over),))
    return with_machine(table, records)


def _compiled() -> list[Record]:
    return [r for r in stored.lines(XEON_AMX, "solve.compiled") if not unmeasured(r)]


def _others(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record["provider"] != "lerp loop"]


def _model(record: Record) -> str:
    return NAMES[record["op"]]


def peers() -> str:
    """A training step and its peers, at N = 8."""
    columns = (
        Column("{}: to loop", ratio),
        Column("peak MiB", PEAK),
        Column("gradient error", error),
    )
    return _beside(stored.lines(XEON_AMX, "solve.peers"), 8, columns)


def _beside(records: Sequence[Record], steps: int, columns: Sequence[Column]) -> str:
    shown = [r for r in records if r["steps"] == steps and not unmeasured(r)]
    return with_machine(pivot(_others(shown), (METHOD,), _model, columns), shown)


def largest() -> str:
    """The largest N and batch within the budget."""
    records = stored.lines(EPYC, "solve.largest")
    budget = f"within {records[0]['budget_bytes'] / 2**20:g} MiB"
    axes = {"N": "N", "batch": "batch, N = 8"}
    shown = [record for record in records if not unmeasured(record)]
    columns = (Column("largest {}", star(solver.amount)),)
    key = replace(METHOD, head=budget)
    return with_machine(pivot(shown, (key,), lambda r: axes[r["axis"]], columns), records)


def overhead() -> str:
    """The time for each half step with a tiny f, and over the loop's."""
    records = [r for r in stored.lines(XEON_AMX, "solve.overhead") if not unmeasured(r)]
    columns = (
        Column("N = {}: us", lambda r: labels.in_unit(solver.each_half_step(r), "us")),
        Column("to loop", ratio),
    )
    return with_machine(pivot(records, (METHOD,), N.cell, columns), records)


PROFILED = ("lerp loop", "reversible exact")


def profile() -> str:
    """Where the time of a step goes at N = 8, in ms."""
    every = stored.lines(XEON_AMX, "solve.profile")
    records = [record for record in every if record["provider"] in PROFILED]
    rows = [(f"`{part}`", r, r["host_seconds"][part]) for part in PARTS for r in records]
    rows += [("the step", record, record["step_seconds"]) for record in records]
    part = Column("ms", lambda row: row[0], left=True)
    cell = Column("{}", lambda row: f"{1e3 * row[2]:.3g}")

    def across(row: tuple[str, Record, float]) -> str:
        return f"{NAMES[row[1]['op']]}: {METHODS[row[1]['provider']]}"

    return with_machine(pivot(rows, (part,), across, (cell,)), records)
