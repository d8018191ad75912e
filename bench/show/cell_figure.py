"""The figure of the equilibrium cell: time against rows, with the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.cell.measure import case_label
from bench.core.session import Record
from bench.show import drawing
from bench.show.drawing import MARKERS, pyplot


def draw(records: Sequence[Record], *paths: Path) -> bool:
    """One panel for each part, both axes logarithmic; False where there is nothing to draw."""
    shown = [r for r in records if r["benchmark"] == "cell" and not r["refused"]]
    panels = list(dict.fromkeys(map(case_label, shown)))
    if not panels:
        return False
    names = list(dict.fromkeys(r["provider"] for r in shown))
    size = (4.6 * len(panels) + 0.6, 4.2)
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=size, squeeze=False, layout="constrained"
    )
    for panel, ax in zip(panels, axes[0], strict=True):
        part = [r for r in shown if case_label(r) == panel]
        for name, style in zip(names, MARKERS, strict=False):
            of_it = [r for r in part if r["provider"] == name]
            times = [1e3 * r["p50_seconds"] for r in of_it]
            ax.plot([r["rows"] for r in of_it], times, label=name, **style)
        floor = {r["rows"]: 1e3 * r["roofline_seconds"] for r in part}
        ax.plot(list(floor), list(floor.values()), "k--", label="roofline")
        ax.set(xscale="log", yscale="log", xlabel="rows", ylabel="ms")
        rows = sorted(floor)
        ax.set_xticks(rows, [str(row) for row in rows], fontsize=8)
        ax.minorticks_off()
        ax.set_title(panel, fontsize=10, loc="left")
        drawing.plain(ax)
    handles, labels = axes[0][0].get_legend_handles_labels()
    drawing.finish(figure, handles, labels, shown, paths)
    return True
