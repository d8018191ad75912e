"""`python -m bench.solver.figures RESULTS.jsonl`: the two figures, drawn from stored lines.

`--cost` draws time, memory and gradient error against N, `--error` the errors of the formats of the
state against N.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import report
from bench.harness import Record
from bench.solver.report import MEBIBYTE, case_label

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
    ("reconstruction_error", "states: distance from their start", STATE_ERRORS),
    ("gradient_error", "gradient: relative error", GRADIENT_ERRORS),
)


def series(records: Sequence[Record], name: str) -> dict[str, list[tuple[int, float, bool]]]:
    """By provider: depth, value, and whether `solve` raises there; without what is lost."""
    found: dict[str, list[tuple[int, float, bool]]] = {}
    for record in records:
        if record.get(name) is not None:
            point = (record["steps"], record[name], record["raises"])
            found.setdefault(record["provider"], []).append(point)
    return found


def draw_series(
    axes: Axes, records: Sequence[Record], name: str, *, scale: float = 1.0, zero: float = 0.0
) -> None:
    """One line for each provider; hollow where `solve` raises."""
    for provider, points in series(records, name).items():
        depths = [depth for depth, _, _ in points]
        values = [max(value * scale, zero) for _, value, _ in points]
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
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def finish(figure: Figure, axes: Axes, records: Sequence[Record], path: Path) -> None:
    """The legend, the machine, the file."""
    names = list(dict.fromkeys(record["provider"] for record in records))
    handles = [axes.plot([], [], label=name, **STYLES[name])[0] for name in names]  # type: ignore[arg-type]
    if any(record["raises"] for record in records):
        hollow = {"color": "black", "marker": "o", "markerfacecolor": "white", "linestyle": ""}
        handles.append(axes.plot([], [], label="check=True raises", **hollow)[0])  # type: ignore[arg-type]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    machine, versions = report.heading(records[0]).split("; ", 1)
    busy = " (busy)" if records[0]["load_average"] > report.BUSY else ""
    footer = f"{machine}{busy}\n{versions}"
    figure.supxlabel(footer, x=0.01, horizontalalignment="left", fontsize=7, color="#555555")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def of_part(records: Sequence[Record], part: str) -> list[Record]:
    """The lines of one part that hold figures."""
    return [r for r in records if r["part"] == part and not r["refused"]]


def draw_cost(records: Sequence[Record], path: Path) -> bool:
    """Time, memory and gradient error; False, and no file, where there is nothing to draw."""
    shown = of_part(records, "cost")
    if not shown:
        return False
    cases = list(dict.fromkeys(case_label(record) for record in shown))
    figure, grid = pyplot.subplots(
        len(cases), 3, squeeze=False, figsize=(13.0, 1.2 + 2.9 * len(cases)), layout="constrained"
    )
    for row, case in zip(grid, cases, strict=True):
        part = [record for record in shown if case_label(record) == case]
        row[0].margins(y=0.1)
        draw_series(row[0], part, "ratio_to_loop")
        row[0].set_ylim(bottom=0)
        dress(row[0], part, f"{case}: time, over that of the lerp loop")
        draw_series(row[1], part, "peak_bytes", scale=1 / MEBIBYTE)
        row[1].set_yscale("log", base=2)
        row[1].yaxis.set_major_formatter("{x:g}")
        dress(row[1], part, "memory at the peak, MiB")
        draw_series(row[2], part, "gradient_error")
        row[2].set_yscale("log")
        row[2].set_ylim(*GRADIENT_ERRORS)
        dress(row[2], part, "relative error of the gradient")
    finish(figure, grid[0][0], shown, path)
    return True


def draw_error(records: Sequence[Record], path: Path) -> bool:
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
    finish(figure, grid[0][0], shown, path)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what was asked for; 1 where the lines hold nothing of it."""
    parser = argparse.ArgumentParser(prog="python -m bench.solver.figures", description=__doc__)
    parser.add_argument("results", type=Path, help="JSON lines written by `python -m bench.solver`")
    parser.add_argument("--cost", type=Path, help="file of the figure of costs")
    parser.add_argument("--error", type=Path, help="file of the figure of errors")
    chosen = parser.parse_args(arguments)
    records = report.read(chosen.results)
    asked = [(draw_cost, chosen.cost), (draw_error, chosen.error)]
    drawn = [draw(records, path) for draw, path in asked if path is not None]
    return 0 if drawn and all(drawn) else 1


if __name__ == "__main__":
    sys.exit(main())
