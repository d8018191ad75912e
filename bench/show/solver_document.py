"""The tables of the solver and the cell in bench/*.md, and the sentence of them in README.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.core import labels, stored
from bench.core.session import Record
from bench.core.stored import EPYC
from bench.profile.attribution import PARTS
from bench.show import tables
from bench.show.solver_tables import MEBIBYTE, in_mebibytes, unmeasured

NAMES = {"mlp": "MLP", "block": "block", "language": "language block", "vision": "vision block"}
Cell = Callable[[Record], str]


def ratio(record: Record) -> str:
    """The time over the loop's."""
    return f"{record['ratio_to_loop']:.2f}" if record["ratio_to_loop"] != 1 else "1"


def peak(record: Record) -> str:
    """In MiB, three digits."""
    return in_mebibytes(record["peak_bytes"])


def error(record: Record) -> str:
    """Of the gradient, two digits."""
    return f"{record['gradient_error']:.1e}".replace("e-0", "e-")


def star(cell: str, record: Record) -> str:
    """Marked where `solve` raises."""
    return f"{cell} \\*" if record["raises"] else cell


def find(records: Iterable[Record], **wanted: object) -> Record:
    """The one line with these values; of lines that were measured twice the last one."""
    found = [r for r in records if all(r.get(name) == value for name, value in wanted.items())]
    if not found:
        raise ValueError(f"bench/results: expected a line with {wanted}, got none")
    return found[-1]


# ---- cost -------------------------------------------------------------------------------------

COST_COLUMNS = {
    "loop": "lerp loop",
    "backprop": "backprop exact",
    "checkpoint": "checkpoint exact",
    "reversible, exact": "reversible exact",
    "float32": "reversible float32",
    "float64": "reversible float64",
}


def cost() -> str:
    """Time and memory at beta 0.5, for each model and two depths."""
    records = [r for r in stored.lines(EPYC, "solve.cost") if r["beta"] == 0.5]
    return _cost(records, ("mlp", "block"), (8, 32))


def paper_blocks() -> str:
    """The same of the paper's blocks, scaled down."""
    records = [r for r in stored.lines(EPYC, "solve.cost") if r["op"] in ("language", "vision")]
    return f"{_cost(records, ('language', 'vision'), (8,))}\n\n{labels.provenance(records)}"


def _cost(records: Sequence[Record], models: Sequence[str], depths: Sequence[int]) -> str:
    rows = []
    for model in models:
        for what, cell in (("time to the loop's", ratio), ("peak in MiB", peak)):
            for depth in depths:
                found = [
                    find(records, op=model, steps=depth, provider=provider)
                    for provider in COST_COLUMNS.values()
                ]
                title = f"{NAMES[model]}, {what}" if depth == depths[0] else ""
                rows.append((title, str(depth), *(star(cell(r), r) for r in found)))
    return tables.markdown(("", "N", *COST_COLUMNS), rows, left=1)


def headline() -> str:
    """What a reversible step costs, in a sentence."""
    records = [r for r in stored.lines(EPYC, "solve.cost") if r["beta"] == 0.5]
    own, loop = (
        find(records, op="mlp", steps=32, provider=provider)
        for provider in ("reversible exact", "lerp loop")
    )
    return (
        f"An MLP of width 512 takes, at 32 steps, {peak(own)} MiB where a loop that stores its "
        f"activations takes {peak(loop)}, and {ratio(own)} times its time."
    )


# ---- options, peers ---------------------------------------------------------------------------


def options() -> str:
    """What the options cost, at N = 4."""
    records = stored.lines(EPYC, "solve.options")
    return _beside(records, 4, {"to loop": ratio, "peak MiB": peak})


def peers() -> str:
    """A train step beside others, at N = 8."""
    records = stored.lines(EPYC, "solve.peers")
    return _beside(records, 8, {"to loop": ratio, "peak MiB": peak, "gradient error": error})


def _beside(records: Sequence[Record], steps: int, cells: dict[str, Cell]) -> str:
    shown = [r for r in records if r["steps"] == steps and not unmeasured(r)]
    models = list(dict.fromkeys(record["op"] for record in shown))
    names = [n for n in dict.fromkeys(r["provider"] for r in shown) if n != "lerp loop"]
    rows = []
    for name in names:
        of_it = [find(shown, op=model, provider=name) for model in models]
        rows.append((f"`{name}`", *(cell(r) for r in of_it for cell in cells.values())))
    columns = [
        f"{NAMES[model]}: {title}" if place == 0 else title
        for model in models
        for place, title in enumerate(cells)
    ]
    return tables.markdown(("", *columns), rows, left=1)


# ---- largest, overhead, profile ---------------------------------------------------------------


def largest() -> str:
    """The largest N and batch within the budget."""
    records = stored.lines(EPYC, "solve.largest")

    def cell(record: Record) -> str:
        more = " or more" if record["at_cap"] else ""
        return star(f"{record['largest']}{more}", record)

    names = list(dict.fromkeys(r["provider"] for r in records if not unmeasured(r)))
    rows = [
        (f"`{n}`", *(cell(find(records, provider=n, axis=axis)) for axis in ("N", "batch")))
        for n in names
    ]
    budget = records[0]["budget_bytes"] / MEBIBYTE
    columns = (f"within {budget:g} MiB", "largest N", "largest batch, N = 8")
    return f"{tables.markdown(columns, rows, left=1)}\n\n{labels.provenance(records)}"


def overhead() -> str:
    """The time for each half step with a tiny f, and over the loop's."""
    records = [r for r in stored.lines(EPYC, "solve.overhead") if not unmeasured(r)]

    def each(record: Record) -> str:
        return labels.in_unit(record["p50_seconds"] / (2 * record["steps"]), "us")

    steps = records[0]["steps"]
    shown = [record for record in records if record["steps"] == steps]
    rows = [(f"`{record['provider']}`", each(record), ratio(record)) for record in shown]
    columns = (f"N = {steps}", "us for each half step", "to loop")
    return f"{tables.markdown(columns, rows, left=1)}\n\n{labels.provenance(records)}"


def profile() -> str:
    """Where the time of a step goes, in ms."""
    records = stored.lines(EPYC, "solve.profile")
    rows = [
        (f"`{part}`", *(f"{1e3 * record['host_seconds'][part]:.0f}" for record in records))
        for part in PARTS
    ]
    rows.append(("the step", *(f"{1e3 * record['step_seconds']:.0f}" for record in records)))
    columns = ("ms", *(f"`{record['provider']}`" for record in records))
    return f"{tables.markdown(columns, rows, left=1)}\n\n{labels.provenance(records)}"


# ---- the cell ---------------------------------------------------------------------------------


def cell() -> str:
    """The equilibrium cell, its times over those of the eager loop."""
    records = stored.lines(EPYC, "cell")
    names = list(dict.fromkeys(record["provider"] for record in records))
    cases = list(dict.fromkeys((r["part"], r["features"], r["rows"]) for r in records))
    rows = []
    for part, features, count in cases:
        of_it = [
            find(records, part=part, features=features, rows=count, provider=name) for name in names
        ]
        loop = of_it[names.index("eager loop")]
        shares = [f"{r['p50_seconds'] / loop['p50_seconds']:.2f}" for r in of_it]
        shares[names.index("eager loop")] = labels.seconds_cell(loop["p50_seconds"])
        roofline = labels.seconds_cell(loop["roofline_seconds"])
        rows.append((part, str(features), str(count), *shares, roofline))
    columns = ("", "features", "rows", *(f"`{name}`" for name in names), "roofline")
    return f"{tables.markdown(columns, rows, left=1)}\n\n{labels.provenance(records)}"
