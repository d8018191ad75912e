"""What all figures share: matplotlib, without pyplot; colors; files."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart without color vision too (Okabe and Ito 2008)."""

LINES = ("-", "--", "-.")
"""Where there are more lines than colors. Dotted is a tol."""

SUFFIXES = (".png", ".svg", ".pdf")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches.

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
    """A light grid, and no frame above and to the right."""
    ax.grid(visible=True, which="major", color="0.88", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def check_path(path: str | Path | None) -> None:
    """See that a figure can be written there, before anything is computed for it.

    Raises:
        ValueError: another kind of file, or no such folder.
    """
    if path is None:
        return
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path: expected a name that ends in {', '.join(SUFFIXES)}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"path: expected a folder that exists, got {path.parent}")


def save(figure: Figure, path: str | Path | None) -> None:
    """Write the figure, if a path is given. The suffix says how."""
    if path is not None:
        figure.savefig(path, dpi=150)
