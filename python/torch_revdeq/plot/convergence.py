"""The residual of a solve, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from ..solution import Solution, Stats
from .canvas import COLORS, check_path, new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Solve: TypeAlias = Stats | Solution


def residuals(
    solves: Solve | Sequence[Solve] | Mapping[str, Solve],
    ax: Axes | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw the relative residual of every step, on a logarithmic scale.

    A solve is a line. With per_sample the line is the median over the samples, in a band from the
    smallest to the largest residual. A `tol` is a dotted line. NaN and zero have no place on the
    scale, and are left out.

    Args:
        solves: the statistics, or the solutions, of solves with ``trace=True``; several as a list,
            or by the names that the legend gives them.
        ax: the axes to draw on; None: those of a new figure.
        path: where to write the figure, as PNG, SVG or PDF.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: something else than statistics and solutions.
        ValueError: a solve without a trace, no solve at all, or a path that cannot be.
    """
    named = _named(solves)
    check_path(path)
    if ax is None:
        ax = new_figure(5.4, 3.6).subplots()
    for place, (name, stats) in enumerate(named.items()):
        color = COLORS[place % len(COLORS)]
        _draw(ax, stats, _traced(stats, name), name, color)
    tols = sorted({stats.tol for stats in named.values() if stats.tol})
    for tol in tols:
        ax.axhline(tol, color="0.35", linestyle=":", linewidth=1.2, label=f"tol = {tol:g}")
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("relative residual")
    ax.locator_params(axis="x", integer=True)
    plain(ax)
    if len(named) > 1 or tols or any(_traced(s, n).ndim > 1 for n, s in named.items()):
        ax.legend(frameon=False)
    figure = ax.get_figure(root=True)
    assert figure is not None
    save(figure, path)
    return figure


def _named(solves: Solve | Sequence[Solve] | Mapping[str, Solve]) -> dict[str, Stats]:
    if isinstance(solves, Stats | Solution):
        rows = {"residual": solves}
    elif isinstance(solves, Mapping):
        rows = dict(solves)
    else:
        rows = {f"solve {place}": solve for place, solve in enumerate(solves, 1)}
    found = {}
    for name, solve in rows.items():
        stats = solve.stats if isinstance(solve, Solution) else solve
        if not isinstance(stats, Stats):
            raise TypeError(
                f"solves: expected Stats or Solution, got {type(solve).__name__} for {name!r}"
            )
        found[str(name)] = stats
    if not found:
        raise ValueError("solves: expected at least one, got none")
    return found


def _traced(stats: Stats, name: str) -> Tensor:
    residuals = stats.residuals
    if residuals is None:
        raise ValueError(
            f"solves: expected the residual of every step, got none for {name!r}; solve with "
            "trace=True"
        )
    return residuals.detach().cpu()


def _draw(ax: Axes, stats: Stats, values: Tensor, name: str, color: str) -> None:
    """A line, and where there are samples their band. Zeros and NaN are left out of both."""
    steps = range(1, len(values) + 1)
    values = values.flatten(1) if values.ndim > 1 else values[:, None]
    values = values.masked_fill(~(values > 0), float("nan"))
    middle = values.nanmedian(1).values
    if values.shape[1] > 1:
        # NaN takes no part, as in the median: the smallest by +inf, the largest by -inf.
        absent = values.isnan()
        low = values.masked_fill(absent, float("inf")).amin(1)
        high = values.masked_fill(absent, float("-inf")).amax(1)
        low, high = (bound.masked_fill(absent.all(1), float("nan")) for bound in (low, high))
        label = f"{values.shape[1]} samples, smallest to largest"
        ax.fill_between(steps, low.tolist(), high.tolist(), color=color, alpha=0.2, label=label)
        name = f"{name}, median"
    # Between the checks of a stopping rule there is nothing: the line goes on from check to check.
    points = [(step, y) for step, y in zip(steps, middle.tolist(), strict=True) if y == y]
    marker = "o" if len(points) <= 40 else ""
    x, y = zip(*points, strict=True) if points else ((), ())
    ax.plot(x, y, color=color, marker=marker, markersize=3.5, linewidth=1.6, label=name)
