"""The figures of what has no depth on an axis: the largest N and batch, the cost of a half step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from bench.core import labels
from bench.core.session import Record
from bench.show import drawing
from bench.show.drawing import pyplot
from bench.show.solver_figures import of_part
from bench.solver.columns import amount, case_label, each_half_step, largest_label

OWN, OTHER, OPEN = "#c1272d", "#9a9a9a", "//"


def draw_largest(records: Sequence[Record], *paths: Path) -> bool:
    """A panel for each case and axis; hatched where `solve` raises at the largest amount."""
    shown = [record for record in of_part(records, "largest") if record["largest"]]

    return _draw(
        shown,
        lambda record: f"largest {record['axis']}: {largest_label(record)}",
        lambda record: record["largest"],
        amount,
        paths,
    )


def draw_overhead(records: Sequence[Record], *paths: Path) -> bool:
    """A panel for each depth."""
    shown = of_part(records, "overhead")

    return _draw(
        shown,
        lambda record: f"us for each half step: {case_label(record)}, N = {record['steps']}",
        lambda record: 1e6 * each_half_step(record),
        lambda record: labels.in_unit(each_half_step(record), "us"),
        paths,
    )


def _draw(
    records: Sequence[Record],
    panel: Callable[[Record], str],
    value: Callable[[Record], float],
    words: Callable[[Record], str],
    paths: Sequence[Path],
) -> bool:
    """Horizontal bars on a logarithmic axis; False where there is nothing to draw."""
    titles = list(dict.fromkeys(map(panel, records)))
    if not titles:
        return False
    names = list(dict.fromkeys(record["provider"] for record in records))
    size = (1.5 + 5.2 * len(titles), 1.7 + 0.32 * len(names))
    figure, grid = pyplot.subplots(
        1, len(titles), squeeze=False, sharey=True, figsize=size, layout="constrained"
    )
    for axes, title in zip(grid[0], titles, strict=True):
        part = [record for record in records if panel(record) == title]
        for record in part:
            _bar(axes, names.index(record["provider"]), record, value(record), words(record))
        axes.set_xscale("log")
        axes.margins(x=0.25)
        axes.set_title(title, fontsize=9, loc="left")
        drawing.plain(axes)
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.tick_params(axis="y", length=0)
    grid[0][0].invert_yaxis()
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in (OWN, OTHER)]
    labels = ["this project", "without it"]
    if any(record["raises"] for record in records):
        handles.append(Rectangle((0, 0), 1, 1, fill=False, hatch=OPEN))
        labels.append("check=True raises")
    drawing.finish(figure, handles, labels, records, paths)
    return True


def _bar(axes: Axes, place: int, record: Record, width: float, words: str) -> None:
    colour = OWN if record["kind"] == "revdeq" else OTHER
    face, hatch = ("white", OPEN) if record["raises"] else (colour, None)
    axes.barh(place, width, height=0.6, color=face, edgecolor=colour, hatch=hatch)
    axes.annotate(f" {words}", (width, place), va="center", fontsize=8)
