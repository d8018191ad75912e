"""Memory and gradient error against the number of steps, plotted side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..layer import RevDEQ
from .canvas import COLORS, check_path, new_figure, plain, save
from .measured import Depth, measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 2.0**20
STYLES = tuple(zip(COLORS, ("o", "s", "^"), strict=False))
"""Colors and markers of the compared methods."""


def depth(
    f: Callable[..., Any],
    z0: Any,
    *args: Any,
    steps: Sequence[int] = (1, 2, 4, 8, 16, 32),
    path: str | Path | None = None,
    **options: Any,
) -> Depth:
    """Measure and plot the cost of depth for your cell and input.

    For each number of steps, computes the solve and its gradient with the reversible adjoint and an
    exact state, with the same and a state in z0's dtype, and with stored activations. The gradient,
    of a random projection of z with respect to z0, `args` and the parameters, is compared with that
    of f in float64. f is restored afterwards: parameters, gradients, buffers, and the random state.

    Args:
        f: as in ``solve``.
        z0: as in ``solve``.
        args: as in ``solve``.
        steps: numbers of solver steps to measure, each with a few forward and backward passes.
        path: file to write the figure to, as PNG, SVG or PDF.
        options: other options of ``solve``, such as beta.

    Returns:
        The measurements, with the figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: f is a layer, cannot run in float64, or reads a tensor that was computed outside
            f and not passed to it; `options` contains one that is set here; steps is not a
            sequence.
        ValueError: no steps, steps below 1, or an invalid path.
    """
    if taken := sorted({"max_steps", "state", "adjoint", "tol", "check"} & set(options)):
        raise TypeError(f"depth: expected options that it does not set itself, got {taken[0]}")
    if isinstance(f, RevDEQ):
        raise TypeError("f: expected the f of a solve, got a RevDEQ; pass layer.f")
    _check_steps(steps)
    check_path(path)
    figure = new_figure(9.6, 3.8)
    found = measure(f, z0, args, sorted(set(steps)), options)
    left, right = figure.subplots(1, 2)
    in_mib = {name: [b and b / MIB for b in row] for name, row in found.memory.items()}
    _draw(left, found, in_mib)
    left.set_yscale("log", base=2)
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = left.dataLim.intervaly
    if 0 < low <= high:  # extend to powers of two, so that a flat line has a tick label
        left.set_ylim(2.0 ** math.floor(math.log2(low)), 2.0 ** (1 + math.floor(math.log2(high))))
    left.set_ylabel("peak memory of a training step, MiB")
    _draw(right, found, found.error)
    right.set_yscale("log")
    right.set_ylim(top=max(2.0, right.get_ylim()[1]))  # so that small errors look small
    right.set_ylabel("relative error of the gradient")
    for ax in (left, right):
        plain(ax)
    figure.legend(*_legend(left, found), loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)
    return replace(found, figure=figure)


def _check_steps(steps: Any) -> None:
    """TypeError or ValueError unless it is a sequence of step numbers."""
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        example = f"; pass steps=({steps},)" if isinstance(steps, int) else ""
        raise TypeError(f"steps: expected a sequence of integers, got {steps!r}{example}")
    if not steps or not all(isinstance(n, int) and n >= 1 for n in steps):
        raise ValueError(f"steps: expected integers of 1 and more, got {tuple(steps)}")


def _draw(ax: Axes, found: Depth, rows: dict[str, Any]) -> None:
    """A line per method, without None and NaN. Hollow markers: the backward pass raises."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(found.steps, [str(count) for count in found.steps])
    ax.minorticks_off()
    ax.set_xlabel("steps")
    for (name, values), (color, marker) in zip(rows.items(), STYLES, strict=True):
        points = [
            (count, value, raises)
            for count, value, raises in zip(found.steps, values, found.raises[name], strict=True)
            if value  # None: out of memory
        ]
        x, y = [point[0] for point in points], [point[1] for point in points]
        hollow = [place for place, point in enumerate(points) if point[2]]
        filled = [place for place, point in enumerate(points) if not point[2]]
        style: dict[str, Any] = {
            "color": color,
            "marker": marker,
            "markersize": 6,
            "linewidth": 1.6,
        }
        ax.plot(x, y, **style, markevery=filled, label=name)
        ax.plot(x, y, **style, markevery=hollow, markerfacecolor="white", linestyle="none")


def _legend(ax: Axes, found: Depth) -> tuple[list[Any], list[str]]:
    handles, labels = ax.get_legend_handles_labels()
    if any(any(row) for row in found.raises.values()):
        style: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "linestyle": "none"}
        handles += ax.plot([], [], color="0.35", **style)
        labels.append("hollow: backward() raises")
    return handles, labels
