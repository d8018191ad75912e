"""The residual of a solve, step by step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

from ..limit.result import FixedPoint, FixedPointStats
from ..solution import Solution, Stats
from .canvas import COLORS, LINES, check_path, new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AnyStats: TypeAlias = Stats | FixedPointStats
Solve: TypeAlias = AnyStats | Solution | FixedPoint | nn.Module
MANY = 8
"""Legends with more entries are placed next to the axes."""


def residuals(
    solves: Solve | Iterable[Solve] | Mapping[str, Solve],
    ax: Axes | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Plot the relative residual of every step, on a logarithmic scale.

    Each solve is a line. With per_sample the line is the median over the samples, in a band from
    the smallest to the largest residual. A `tol` is a dotted line. NaN, Inf and zero cannot be
    shown and are left out; a cross marks the last residual of a solve that diverged.

    Args:
        solves: a ``Stats`` or ``Solution`` of a solve with ``trace=True``, a layer (for its last
            call), or the same from ``fixed_point``; a list of these, or a dict of these by their
            names in the legend.
        ax: the axes to draw on; None: those of a new figure.
        path: file to write the figure to, as PNG, SVG or PDF.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: an item is not one of these types.
        ValueError: a solve without a trace, no solve, or an invalid path.
    """
    named = _named(solves)
    traces = {name: _traced(stats, name) for name, stats in named.items()}
    check_path(path)
    own = ax is None
    if ax is None:
        ax = new_figure(5.4 if len(named) <= MANY else 7.2, 3.6).subplots()
    for place, (name, stats) in enumerate(named.items()):
        style = {"color": COLORS[place % len(COLORS)]}
        style["linestyle"] = LINES[place // len(COLORS) % len(LINES)]
        _draw(ax, traces[name], name, style, diverged=stats.result == "diverged")
    tols = sorted({stats.tol for stats in named.values() if isinstance(stats, Stats) and stats.tol})
    for tol in tols:
        ax.axhline(tol, color="0.35", linestyle=":", linewidth=1.2, label=f"tol = {tol:g}")
    ax.set_yscale("log")
    _widen(ax, max(map(len, traces.values())))
    ax.set_xlabel("step")
    ax.set_ylabel("relative residual")
    ax.locator_params(axis="x", integer=True, min_n_ticks=1)
    plain(ax)
    _add_legend(ax, [*named], beside=own)
    figure = ax.get_figure(root=True)
    assert figure is not None
    save(figure, path)
    return figure


def _named(solves: Any) -> dict[str, AnyStats]:
    if isinstance(solves, Mapping):
        rows = dict(solves)
    elif isinstance(solves, Iterable) and not isinstance(solves, nn.Module):
        rows = {f"solve {place}": solve for place, solve in enumerate(solves, 1)}
    else:
        rows = {"residual": solves}
    if not rows:
        raise ValueError("solves: expected at least one, got none")
    return {str(name): _stats_of(solve, str(name)) for name, solve in rows.items()}


def _stats_of(solve: Any, name: str) -> AnyStats:
    stats = solve.stats if isinstance(solve, Solution | FixedPoint) else solve
    if isinstance(solve, nn.Module):
        stats = getattr(solve, "stats", solve)
    if isinstance(solve, nn.Module) and stats is None:
        raise ValueError(
            f"solves: expected a layer that was called, got a {type(solve).__name__} without "
            f"statistics for {name!r}; call it first"
        )
    if not isinstance(stats, Stats | FixedPointStats):
        raise TypeError(
            f"solves: expected Stats or Solution, got {type(solve).__name__} for {name!r}; pass "
            "the solution, its stats, or the layer after a call"
        )
    return stats


def _traced(stats: AnyStats, name: str) -> Tensor:
    residuals = stats.residuals
    if residuals is None:
        raise ValueError(
            f"solves: expected the residual of every step, got none for {name!r}; solve with "
            "trace=True"
        )
    return residuals.detach().cpu()


def _draw(ax: Axes, values: Tensor, name: str, style: Mapping[str, Any], *, diverged: bool) -> None:
    """A line, and with samples their band. Leaves out everything except positive numbers."""
    steps = range(1, len(values) + 1)
    values = values.flatten(1) if values.ndim > 1 else values[:, None]
    zero = not bool(values.any())
    values = values.masked_fill(~((values > 0) & values.isfinite()), float("nan"))
    middle = values.nanmedian(1).values
    if values.shape[1] > 1:
        # NaN is ignored, as in the median: it becomes +inf for the minimum, -inf for the maximum.
        absent = values.isnan()
        low = values.masked_fill(absent, float("inf")).amin(1)
        high = values.masked_fill(absent, float("-inf")).amax(1)
        low, high = (bound.masked_fill(absent.all(1), float("nan")) for bound in (low, high))
        band = f"{values.shape[1]} samples, smallest to largest"
        color = style["color"]
        ax.fill_between(steps, low.tolist(), high.tolist(), color=color, alpha=0.2, label=band)
    # There are no values between the checks of a stopping rule: the line connects the checks.
    points = [(step, y) for step, y in zip(steps, middle.tolist(), strict=True) if y == y]
    marker = "o" if len(points) <= 40 else ""
    x, y = zip(*points, strict=True) if points else ((), ())
    label = f"{name}: 0 in every step" if zero else name
    label = f"{label}, median" if values.shape[1] > 1 else label
    ax.plot(x, y, **style, marker=marker, markersize=3.5, linewidth=1.6, label=label)
    if diverged:
        label = f"{name}: diverged after step {x[-1] if x else 0}"
        cross = {"marker": "x", "markersize": 9, "markeredgewidth": 2.0, "linestyle": "none"}
        ax.plot(x[-1:], y[-1:], color=style["color"], **cross, label=label)


def _widen(ax: Axes, steps: int) -> None:
    """Show at least a decade, and all steps, so that small changes look small."""
    low, high = ax.dataLim.intervaly if ax.dataLim.y0 <= ax.dataLim.y1 else (1e-4, 1.0)
    if low > 0:
        middle, half = math.sqrt(low * high), math.sqrt(10)
        left, right = (1.0, steps) if steps > 1 else (0.5, 1.5)
        corners = [(left, min(low, middle / half)), (right, max(high, middle * half))]
        ax.update_datalim(corners)  # not set_ylim, because the axes may get other lines
        ax.autoscale_view()


def _add_legend(ax: Axes, names: list[str], *, beside: bool) -> None:
    """Add a legend, unless it would show a single line name."""
    entries: dict[str, Any] = {}
    for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
        entries.setdefault(label, handle)  # bands with as many samples share one label
    if [*entries] in ([], names[:1]):
        return
    where: dict[str, Any] = {}
    if beside and len(entries) > MANY:
        columns = 1 + (len(entries) - 1) // 16
        where = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "ncols": columns}
    ax.legend([*entries.values()], [*entries], frameon=False, **where)
