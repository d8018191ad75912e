"""Figures as SVG within a page: its colours, light and dark, and no name that occurs twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib

from bench.core.session import Record

Draw = Callable[..., bool]
"""Writes a figure of the lines to the paths, in their formats; False where there is nothing."""

DARK = {
    "#000000": "#e6e6e6",
    "#ffffff": "#16181b",
    "#f5f5f5": "#1f2226",
    "#dddddd": "#3a3f45",
    "#555555": "#a8a8a8",
    "#5f5f5f": "#b4b4b4",
    "#6b6b6b": "#a0a0a0",
    "#9a9a9a": "#8a8a8a",
    "#c1272d": "#ff6b6f",
    "#0072b2": "#58b4ee",
    "#009e73": "#2fd0a4",
    "#7a6fac": "#a79bdc",
    "#b07156": "#cf9074",
}
"""What a colour of the figures becomes on a dark ground. Those that are not here do on both."""


def inline(draw: Draw, records: Sequence[Record], name: str, title: str) -> str:
    """The figure as an element of a page, or "" where there is nothing to draw.

    `name` begins every id in it: two figures of one page may not share one.
    """
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "savefig.transparent": True}
    with TemporaryDirectory() as folder, matplotlib.rc_context(settings):
        path = Path(folder) / "figure.svg"
        if not draw(records, path):
            return ""
        text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#|url\(#', lambda found: f"{found[0]}{name}-", text)
    for colour in DARK:
        text = text.replace(colour, f"var({_variable(colour)})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def styles() -> tuple[str, str]:
    """The colours as declarations of CSS variables: on a light ground, on a dark one."""
    light = " ".join(f"{_variable(colour)}: {colour};" for colour in DARK)
    dark = " ".join(f"{_variable(colour)}: {other};" for colour, other in DARK.items())
    return light, dark


def _variable(colour: str) -> str:
    return f"--c-{colour[1:]}"
