"""The figure of the equilibrium cell: time against rows or features, with the roofline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bench.cell.columns import MEMORY, case_label
from bench.core.session import Record
from bench.show import drawing
from bench.show.drawing import MARKERS, pyplot

ACROSS = 4


def draw(records: Sequence[Record], *paths: Path) -> bool:
    """A panel for each case, both axes logarithmic; False where there is nothing to draw.

    Against the rows where there are several, and otherwise against the features.
    """
    shown = [
        r for r in records if r["benchmark"] == "cell" and r["part"] != MEMORY and not r["refused"]
    ]
    if not shown:
        return False
    axis = "rows" if len({r["rows"] for r in shown}) > 1 else "features"
    panels: dict[str, list[Record]] = {}
    for record in shown:
        panels.setdefault(_title(record, axis), []).append(record)
    names = list(dict.fromkeys(r["provider"] for r in shown))
    styles = dict(zip(names, MARKERS, strict=False))
    down, across = math.ceil(len(panels) / ACROSS), min(len(panels), ACROSS)
    figure, grid = pyplot.subplots(
        down, across, figsize=(4.6 * across + 0.6, 4.2 * down), squeeze=False, layout="constrained"
    )
    for ax, (title, part) in zip(grid.flat, panels.items(), strict=False):
        for name, style in styles.items():
            of_it = [r for r in part if r["provider"] == name]
            times = [1e3 * r["p50_seconds"] for r in of_it]
            ax.plot([r[axis] for r in of_it], times, label=name, **style)
        floor = {r[axis]: 1e3 * r["roofline_seconds"] for r in part}
        ax.plot(list(floor), list(floor.values()), "k--", label="roofline")
        ax.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms")
        ticks = sorted(floor)
        ax.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
        ax.minorticks_off()
        ax.set_title(title, fontsize=10, loc="left")
        drawing.plain(ax)
    for ax in grid.flat[len(panels) :]:
        ax.set_axis_off()
    handles, labels = grid[0][0].get_legend_handles_labels()
    drawing.finish(figure, handles, labels, shown, paths)
    return True


def _title(record: Record, axis: str) -> str:
    """What a panel holds fixed."""
    if axis == "rows":
        return case_label(record)
    return case_label(record).replace(f"{record['features']} features", f"{record['rows']} rows")
