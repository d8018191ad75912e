"""The figure and the table at the head of README.md and of the site, from stored lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.core import labels, stored
from bench.core.case import MEBIBYTE
from bench.core.session import Record
from bench.core.stored import XEON_AMX
from bench.core.table import markdown
from bench.show.documents import error, find, ratio
from bench.solver import columns as solver

LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "backprop exact": (
        "backprop, activations stored",
        {"color": "#9a9a9a", "marker": "o", "linewidth": 5.0, "markersize": 9, "alpha": 0.75},
    ),
    "torch checkpoint": (
        "torch.utils.checkpoint",
        {"color": "#7a6fac", "marker": "^", "linestyle": "-."},
    ),
    "torchdeq IFT": (
        "torchdeq, implicit gradient",
        {"color": "#009e73", "marker": "s", "linestyle": ":"},
    ),
    "reversible float32": (
        "RevDEQ, float32 state",
        {"color": "#0072b2", "marker": "v", "linestyle": "--"},
    ),
    "reversible exact": ("RevDEQ, exact state", {"color": "#c1272d", "marker": "D"}),
}
"""By provider: its name in the figure, and how its line looks."""

ROWS = {
    "lerp loop": ("Backprop through the loop", "the N steps"),
    "torch checkpoint": ("`torch.utils.checkpoint`", "the N steps"),
    "torchdeq IFT": ("torchdeq, implicit gradient", "the fixed point"),
    "reversible exact": ("**`RevDEQ`**", "the N steps, bit for bit"),
}
"""By provider: the first column of the table, and what its gradient is that of."""

STEPS = 8  # of the table: the deepest solve of which a quiet machine has times for all four


def lines() -> list[Record]:
    """Of the figure: one model at beta 0.5, at every number of steps measured."""
    return [record for record in _of_mlp() if record["provider"] in LINES]


def _of_mlp() -> list[Record]:
    """In the order of steps: the depths were measured in several runs."""
    records = [r for r in stored.lines(XEON_AMX, "solve.peers") if r["op"] == "mlp"]
    return sorted(records, key=lambda record: record["steps"])


def points() -> dict[str, list[dict[str, Any]]]:
    """What the figure shows, by line: steps, MiB, error, and whether `backward()` raises."""
    records = lines()
    return {
        name: [
            {
                "steps": record["steps"],
                "MiB": round(record["peak_bytes"] / MEBIBYTE, 2),
                "error": float(f"{record['gradient_error']:.3g}"),
                "raises": record["raises"],
            }
            for record in records
            if record["provider"] == provider
        ]
        for provider, (name, _) in LINES.items()
    }


def caption() -> str:
    """The machine and the model of the figure."""
    return (
        "One training step of a 512-wide MLP at beta = 0.5, excluding weights and data. Error: "
        "distance from the gradient of the same number of steps in float64. Hollow markers: "
        "`backward()` raises. "
        f"{labels.provenance(lines())}."
    )


def compared() -> str:
    """Four ways to train the same model, in a row each."""
    records = _of_mlp()
    rows = []
    for provider, (name, gradient) in ROWS.items():
        shallow, shown = (find(records, provider=provider, steps=n) for n in (2, STEPS))
        each = (shown["peak_bytes"] - shallow["peak_bytes"]) / (STEPS - shallow["steps"])
        growth = f"{each / MEBIBYTE:.2g} MiB" if each > MEBIBYTE / 100 else "0"
        rows.append(
            (
                name,
                f"{solver.PEAK.cell(shown)} MiB",
                growth,
                gradient,
                error(shown),
                f"{ratio(shown)}x",
            )
        )
    heads = (
        "",
        f"peak memory, N = {STEPS}",
        "per further step",
        "gradient of",
        "distance from N-step gradient",
        "training time",
    )
    return f"{markdown(heads, rows, left=1)}\n\n{labels.provenance(records)}"


def draw(path: Path) -> None:
    """The figure: memory on the left, the error on the right, a line for each way to train."""
    from bench.show.drawing import plain, pyplot

    shown = points()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 3.7), layout="constrained")
    looks = dict(LINES.values())
    for name, line in shown.items():
        steps = [point["steps"] for point in line]
        look = {"linewidth": 2.0, "markersize": 6} | looks[name]
        for axes, key in ((left, "MiB"), (right, "error")):
            axes.plot(steps, [point[key] for point in line], label=name, **look)
            for point in line:
                if point["raises"]:
                    axes.plot(point["steps"], point[key], **look | {"markerfacecolor": "#ffffff"})
    ticks = sorted({point["steps"] for line in shown.values() for point in line})
    left.set_title("peak memory, MiB", fontsize=11, loc="left")
    right.set_title("relative error of the gradient", fontsize=11, loc="left")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(ticks, [str(step) for step in ticks])
        axes.minorticks_off()
        axes.set_xlabel("steps N")
        plain(axes)
    memory = (16, 32, 64, 128, 256, 512, 1024)
    left.set_yticks(memory, [str(mark) for mark in memory])
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path)
    pyplot.close(figure)
