"""The figures of the solver, drawn from stored lines: cost, and errors, against N."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.core import labels as words
from bench.core.session import Record
from bench.show import drawing
from bench.show.drawing import pyplot
from bench.solver.columns import case_label, unmeasured

STYLES: dict[str, dict[str, str]] = {
    "lerp loop": {"color": "#5f5f5f", "marker": "o", "linestyle": "-"},
    "backprop exact": {"color": "#c8a24a", "marker": "s", "linestyle": "-"},
    "checkpoint exact": {"color": "#7a6fac", "marker": "^", "linestyle": "-"},
    "reversible exact": {"color": "#c1272d", "marker": "D", "linestyle": "--"},
    "reversible float32": {"color": "#0072b2", "marker": "v", "linestyle": "-"},
    "reversible float64": {"color": "#009e73", "marker": "P", "linestyle": "-"},
}
STYLES |= {
    "exact": STYLES["reversible exact"],
    "float32": STYLES["reversible float32"],
    "float64": STYLES["reversible float64"],
    "exact, f bfloat16": {"color": "#e08a8d", "marker": "*", "linestyle": ":"},
    "bfloat16": {"color": "#6b6b6b", "marker": "X", "linestyle": "-"},
}
# Ends of the vertical axes. Errors beyond them differ in how wrong they are, which nobody asks.
STATE_ERRORS = 1e-18, 1e3
GRADIENT_ERRORS = 1e-8, 10.0
# Where an error of zero is drawn, and the errors that the axis names.
ZERO = 1e-17
STATE_TICKS = range(-15, 4, 3)
ERROR_PANELS = (
    ("reconstruction_error", "reconstruction error of the initial state", STATE_ERRORS),
    ("gradient_error", "relative error of the gradient", GRADIENT_ERRORS),
)


def series(records: Sequence[Record], name: str) -> dict[str, list[tuple[int, float, bool]]]:
    """By provider: depth, value, and whether `solve` raises there; without what is lost."""
    found: dict[str, list[tuple[int, float, bool]]] = {}
    for record in records:
        if record.get(name) is not None:
            point = (record["steps"], record[name], record["raises"])
            found.setdefault(record["provider"], []).append(point)
    return found


def draw_series(axes: Axes, records: Sequence[Record], name: str, *, zero: float = 0.0) -> None:
    """One line for each provider; hollow where `solve` raises."""
    for provider, points in series(records, name).items():
        depths = [depth for depth, _, _ in points]
        values = [max(value, zero) for _, value, _ in points]
        style = STYLES[provider]
        axes.plot(depths, values, color=style["color"], linestyle=style["linestyle"], linewidth=1.5)
        for depth, value, (_, _, raises) in zip(depths, values, points, strict=True):
            face = "white" if raises else style["color"]
            axes.plot(
                depth, value, marker=style["marker"], markersize=6, color=style["color"],
                markerfacecolor=face, zorder=3,
            )  # fmt: skip


def dress(axes: Axes, records: Sequence[Record], title: str) -> None:
    """The axis of depths, the grid and the title."""
    depths = sorted({record["steps"] for record in records})
    axes.set_xscale("log", base=2)
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    axes.set_xlabel("N (steps)", fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    drawing.plain(axes)


def finish(figure: Figure, axes: Axes, records: Sequence[Record], paths: Sequence[Path]) -> None:
    """The legend with what hollow points mean, the machine, the files."""
    names = list(dict.fromkeys(record["provider"] for record in records))
    handles = [axes.plot([], [], **STYLES[name])[0] for name in names]  # type: ignore[arg-type]
    if any(record["raises"] for record in records):
        hollow = {"color": "black", "marker": "o", "markerfacecolor": "white", "linestyle": ""}
        handles.append(axes.plot([], [], **hollow)[0])  # type: ignore[arg-type]
        names.append("check=True raises")
    drawing.finish(figure, handles, names, records, paths)


def of_part(records: Sequence[Record], part: str) -> list[Record]:
    """The lines of one part that hold figures."""
    return [
        r for r in records if r["benchmark"] == "solver" and r["part"] == part and not unmeasured(r)
    ]


def draw_cost(records: Sequence[Record], *paths: Path) -> bool:
    """Time, memory and gradient error; False, and no file, where there is nothing to draw.

    Against N, or as bars where a case has a single N.
    """
    shown = of_part(records, "cost")
    if not shown:
        return False
    cases = list(dict.fromkeys(case_label(record) for record in shown))
    each = [[record for record in shown if case_label(record) == case] for case in cases]
    single = [len({record["steps"] for record in part}) == 1 for part in each]
    figure, grid = pyplot.subplots(
        len(cases),
        3,
        squeeze=False,
        figsize=(13.0, 1.2 + sum(1.9 if one else 2.9 for one in single)),
        height_ratios=[1.9 if one else 2.9 for one in single],
        layout="constrained",
    )
    for row, case, part, one in zip(grid, cases, each, single, strict=True):
        (_bars if one else _lines)(row, case, part)
    finish(figure, grid[0][0], shown, paths)
    return True


TITLES = ("{}: time, lerp loop = 1", "peak memory", "relative error of the gradient")


def _lines(row: Sequence[Axes], case: str, part: Sequence[Record]) -> None:
    """The three panels of a case with several depths."""
    row[0].margins(y=0.1)
    draw_series(row[0], part, "ratio_to_loop")
    row[0].set_ylim(bottom=0)
    draw_series(row[1], part, "peak_bytes")
    drawing.in_bytes(row[1].yaxis, [r["peak_bytes"] for r in part])
    draw_series(row[2], part, "gradient_error")
    row[2].set_yscale("log")
    row[2].set_ylim(*GRADIENT_ERRORS)
    for axes, title in zip(row, TITLES, strict=True):
        dress(axes, part, title.format(case))


def _bars(row: Sequence[Axes], case: str, part: Sequence[Record]) -> None:
    """The three panels of a case with one depth."""
    colours = {name: style["color"] for name, style in STYLES.items()}
    columns = (
        ("ratio_to_loop", lambda value: f"{value:.2f}x"),
        ("peak_bytes", words.size_label),
        ("gradient_error", lambda value: f"{value:.1e}"),
    )
    title = f"{case}, N = {part[0]['steps']}"
    for axes, (name, text), head in zip(row, columns, TITLES, strict=True):
        values = {r["provider"]: r[name] for r in part if r.get(name) is not None}
        drawing.bars(axes, values, colours, text)
        axes.set_title(head.format(title), fontsize=10, loc="left")
        axes.set_xticks([])  # each bar has its value
    drawing.in_bytes(row[1].xaxis, [1.25 * max(r["peak_bytes"] for r in part)])


def draw_error(records: Sequence[Record], *paths: Path) -> bool:
    """The errors of the formats; False, and no file, where there is nothing to draw."""
    shown = of_part(records, "error")
    if not shown:
        return False
    betas = sorted({record["beta"] for record in shown})
    figure, grid = pyplot.subplots(
        2, len(betas), squeeze=False, sharey="row", figsize=(1.0 + 4.2 * len(betas), 7.2),
        layout="constrained",
    )  # fmt: skip
    for row, (name, title, limits) in zip(grid, ERROR_PANELS, strict=True):
        for axes, beta in zip(row, betas, strict=True):
            part = [record for record in shown if record["beta"] == beta]
            draw_series(axes, part, name, zero=ZERO)
            axes.set_yscale("log")
            axes.set_ylim(*limits)
            dress(axes, part, f"beta {beta:g}")
        row[0].set_ylabel(title, fontsize=9)
    ticks = [ZERO, *(10.0**n for n in STATE_TICKS)]
    grid[0][0].set_yticks(ticks, ["0", *(f"$10^{{{n}}}$" for n in STATE_TICKS)])
    finish(figure, grid[0][0], shown, paths)
    return True
