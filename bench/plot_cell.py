"""The picture of the equilibrium cell: time against rows, with the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from bench.harness import Record


def draw(records: Sequence[Record], path: Path) -> None:
    """One panel for each part and number of features, both axes logarithmic."""
    panels = list(dict.fromkeys((r["part"], r["features"]) for r in records))
    size = (5.2 * len(panels), 4.2)
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, squeeze=False)
    for (part, features), ax in zip(panels, axes[0], strict=True):
        shown = [r for r in records if (r["part"], r["features"]) == (part, features)]
        for name in dict.fromkeys(r["provider"] for r in shown):
            of_it = [r for r in shown if r["provider"] == name and r["median_s"] is not None]
            times = [r["median_s"] for r in of_it]
            ax.plot([r["rows"] for r in of_it], times, marker="o", label=name)
        floor = {r["rows"]: r["roofline_s"] for r in shown}
        ax.plot(list(floor), list(floor.values()), "k--", label="roofline")
        ax.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds")
        ax.set_title(f"{part}, {features} features, {shown[0]['dtype']}, N {shown[0]['steps']}")
        ax.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
