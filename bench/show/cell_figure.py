"""The figure of the equilibrium cell: time against rows or features, with the roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

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
    single = len({r[axis] for r in shown}) == 1
    height = 1.0 + 0.25 * len(names) if single else 4.2
    size = (4.6 * across + 0.6, height * down)
    figure, grid = pyplot.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for ax, (title, part) in zip(grid.flat, panels.items(), strict=False):
        if len({r[axis] for r in part}) == 1:
            _bars(ax, part, styles, f"{title}, {part[0][axis]} {axis}")
            continue
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
    handles = [grid[0][0].plot([], [], **styles[name])[0] for name in names]
    handles.append(grid[0][0].plot([], [], "k--")[0])
    labels = [*names, "roofline"]
    drawing.finish(figure, handles, labels, shown, paths)
    return True


def _bars(ax: Axes, part: Sequence[Record], styles: Mapping[str, Any], title: str) -> None:
    """The panel where there is one point, with the roofline."""
    times = {r["provider"]: 1e3 * r["p50_seconds"] for r in part}
    colours = {name: style["color"] for name, style in styles.items()}
    drawing.bars(ax, times, colours, lambda value: f"{value:.3g} ms")
    ax.axvline(1e3 * part[0]["roofline_seconds"], color="black", linestyle="--")
    ax.set_title(title, fontsize=8, loc="left")
    ax.set_xlabel("ms", fontsize=8)


def _title(record: Record, axis: str) -> str:
    """What a panel holds fixed."""
    if axis == "rows":
        return case_label(record)
    return case_label(record).replace(f"{record['features']} features", f"{record['rows']} rows")
