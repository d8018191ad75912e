"""What all figures have in common: how lines look, the machine below them, the files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.scale import LogScale
from matplotlib.ticker import MultipleLocator

from bench.core import labels as words
from bench.core import stored
from bench.core.session import Record

__all__ = ["ENDINGS", "MARKERS", "bars", "finish", "in_bytes", "plain", "pyplot"]

Text = Callable[[float], str]
# Of every figure that a run leaves.
ENDINGS = (".png", ".svg")
# Told apart by shape and by line where colours cannot be.
MARKERS: tuple[dict[str, Any], ...] = (
    {"color": "#5f5f5f", "marker": "o", "linestyle": "-"},
    {"color": "#7a6fac", "marker": "s", "linestyle": "-"},
    {"color": "#0072b2", "marker": "v", "linestyle": "-"},
    {"color": "#c1272d", "marker": "D", "linestyle": "--"},
    {"color": "#009e73", "marker": "P", "linestyle": "-."},
    {"color": "#b07156", "marker": "X", "linestyle": ":"},
    {"color": "#9a9a9a", "marker": "^", "linestyle": "-."},
    {"color": "#6b6b6b", "marker": "<", "linestyle": ":"},
    {"color": "#0072b2", "marker": ">", "linestyle": "--"},
    {"color": "#c1272d", "marker": "*", "linestyle": ":"},
)


def plain(axes: Axes) -> None:
    """A light grid behind the lines, and no frame."""
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def bars(axes: Axes, values: Mapping[str, float], colours: Mapping[str, str], text: Text) -> None:
    """Horizontal bars from zero, each with its value: for what has one point on its axis."""
    for place, (name, value) in enumerate(values.items()):
        axes.barh(place, value, height=0.6, color=colours[name])
        axes.annotate(f" {text(value)}", (value, place), va="center", fontsize=8)
    plain(axes)
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(values)), list(values), fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.25 * max(values.values(), default=1.0) or 1.0)
    axes.invert_yaxis()


def in_bytes(axis: Axis, values: Sequence[float]) -> None:
    """Label an axis of bytes in KiB, MiB and GiB; logarithmic where the values lie far apart."""
    name = "x" if axis is axis.axes.xaxis else "y"
    if max(values) >= 8 * min(values) > 0:
        axis.axes.set(**{f"{name}scale": LogScale(axis, base=2)})
    else:
        axis.axes.set(**{f"{name}lim": (0, 1.1 * max(values))})
        step = 2.0 ** math.floor(math.log2(max(values) / 3))
        axis.set_major_locator(MultipleLocator(step))
    axis.set_major_formatter(lambda value, _: words.size_label(value))


def finish(
    figure: Figure,
    handles: Sequence[Any],
    labels: Sequence[str],
    records: Sequence[Record],
    paths: Sequence[Path],
) -> None:
    """The legend above, the machine and the versions below; then the files."""
    columns = min(len(labels), max(1, int(figure.get_figwidth() / 1.7)))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    machine, versions = words.heading(records[0]).split("; ", 1)
    busy = " (busy)" if any(map(stored.busy, records)) else ""
    footer = f"{machine}{busy}\n{versions}"
    figure.supxlabel(footer, x=0.01, horizontalalignment="left", fontsize=7, color="#555555")
    for path in paths:
        figure.savefig(path, dpi=150)
        figure.set_layout_engine("none")  # where everything stands is known from here on
    pyplot.close(figure)
