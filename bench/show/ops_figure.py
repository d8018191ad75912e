"""The plot: for every case, how near each provider comes to the speed of `copy_`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from bench.core import labels as words
from bench.core.session import Record
from bench.show import drawing
from bench.show.drawing import pyplot

ALTERNATIVE_MARKERS = ("o", "s", "^", "v", "P", "X")
REVDEQ_MARKERS = ("D", "*", "h")
REVDEQ_COLOURS = ("#c1272d", "#0072b2", "#009e73")
ALTERNATIVE_COLOURS = ("#9a9a9a", "#5f5f5f", "#c8a24a", "#7a6fac", "#6b9080", "#b07156")


def provider_family(record: Record) -> str:
    """Providers that share a marker: `eager float64` is eager."""
    return record["provider"].removesuffix(" float64")


def styles(records: Sequence[Record]) -> dict[str, dict[str, object]]:
    """Colour and marker of every provider family, the project's own in strong colours."""
    names = list(dict.fromkeys(provider_family(record) for record in records))
    kinds = {provider_family(record): record["kind"] for record in records}
    own = [name for name in names if kinds[name] == "revdeq"]
    others = [name for name in names if kinds[name] == "alternative"]
    chosen: dict[str, dict[str, object]] = {}
    for index, name in enumerate(others):
        colour = ALTERNATIVE_COLOURS[index % len(ALTERNATIVE_COLOURS)]
        marker = ALTERNATIVE_MARKERS[index % len(ALTERNATIVE_MARKERS)]
        chosen[name] = {"color": colour, "marker": marker, "s": 42, "zorder": 3}
    for index, name in enumerate(own):
        colour = REVDEQ_COLOURS[index % len(REVDEQ_COLOURS)]
        marker = REVDEQ_MARKERS[index % len(REVDEQ_MARKERS)]
        chosen[name] = {"color": colour, "marker": marker, "s": 58, "zorder": 4}
    return chosen


def case_label(record: Record) -> str:
    """One line of the vertical axis."""
    return f"{words.op_label(record)}   {words.types_label(record)}"


def draw_panel(
    axes: Axes, records: Sequence[Record], labels: Sequence[str], chosen: dict[str, dict]
) -> None:
    """Dots of one size and thread count, with p20 to p80 as a line; `copy_` itself is 100 %."""
    for record in records:
        place = labels.index(case_label(record))
        share = 100 * record["share_of_bound"]
        middle = record["p50_seconds"]
        ends = [share * middle / record[name] for name in ("p80_seconds", "p20_seconds")]
        style = chosen[provider_family(record)]
        axes.plot(ends, [place, place], color=style["color"], linewidth=2, alpha=0.6, zorder=2)
        axes.scatter(share, place, linewidths=0, clip_on=False, **style)
    axes.axvline(100, color="black", linewidth=1, zorder=1)
    for place in range(1, len(labels), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="#f5f5f5", linewidth=0, zorder=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlim(left=0)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("% of the speed of copy_", fontsize=9)
    axes.set_title(words.place_label(records[0]), fontsize=10, loc="left")


def draw(records: Sequence[Record], *paths: Path) -> bool:
    """Write the plot; False, and no file, where no record has a share of the bound."""
    shown = [r for r in records if r.get("share_of_bound") is not None and r["kind"] != "bound"]
    if not shown:
        return False
    labels = list(dict.fromkeys(case_label(record) for record in shown))
    places = list(dict.fromkeys(words.place_label(record) for record in shown))
    chosen = styles(shown)
    figure, grid = pyplot.subplots(
        1,
        len(places),
        sharey=True,
        squeeze=False,
        figsize=(5.0 + 4.2 * len(places), 1.9 + 0.32 * len(labels)),
        layout="constrained",
    )
    for axes, place in zip(grid[0], places, strict=True):
        part = [record for record in shown if words.place_label(record) == place]
        draw_panel(axes, part, labels, chosen)
    handles = [grid[0][0].scatter([], [], **style) for style in chosen.values()]
    handles.append(grid[0][0].plot([], [], color="black", linewidth=1)[0])
    drawing.finish(figure, handles, [*chosen, "copy_"], shown, paths)
    return True
