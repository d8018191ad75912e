"""Shared by all figures: matplotlib without pyplot, colors, files."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Distinguishable without color vision (Okabe and Ito 2008)."""

LINES = ("-", "--", "-.")
"""Used if there are more lines than colors. Dotted lines are for tol."""

SUFFIXES = (".png", ".svg", ".pdf")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, with width and height in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError(
            "torch_revdeq.plot needs matplotlib, which is not installed; pip install "
            "'revdeq-kernels[plot]'"
        ) from error
    return module.Figure(figsize=(width, height), layout="constrained")


def plain(ax: Axes) -> None:
    """A light grid, without the top and right frame."""
    ax.grid(visible=True, which="major", color="0.88", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def check_path(path: str | Path | None) -> None:
    """Check that a figure can be written to the path, before anything is computed for it.

    Raises:
        ValueError: unsupported file type, or no such folder.
    """
    if path is None:
        return
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path: expected a name that ends in {', '.join(SUFFIXES)}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"path: expected an existing folder, got {path.parent}")


def save(figure: Figure, path: str | Path | None) -> None:
    """Write the figure, if a path is given, in the format of its suffix."""
    if path is not None:
        figure.savefig(path, dpi=150)
