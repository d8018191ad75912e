"""The figures in docs/ that are drawn from stored lines: as SVG, for light and for dark pages.

Each file holds the numbers that it shows in its `desc`: by these `python -m bench.show.readme
--check` knows a figure that is out of date, whatever version of matplotlib drew it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.core import stored
from bench.show import front, study_figures
from bench.show.inline_svg import DARK

FONTS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Picture:
    """A figure: its name in docs/, the numbers that it shows, and what draws it to a path."""

    name: str
    shown: Callable[[], dict[str, Any]]
    draw: Callable[[Path], object]

    def path(self, *, dark: bool) -> str:
        """Of the file, from the root of the repository."""
        return f"docs/{self.name}{'-dark' if dark else ''}.svg"


def errors() -> dict[str, Any]:
    """By beta and format of the state: steps, both errors, and whether `backward()` raises."""
    found: dict[str, Any] = {}
    for record in stored.lines(stored.EPYC, "solve.error"):
        values = [record[name] for name in ("reconstruction_error", "gradient_error")]
        short = [None if value is None else float(f"{value:.3g}") for value in values]
        line = found.setdefault(f"{record['provider']}, beta {record['beta']:g}", [])
        line.append([record["steps"], *short, record["raises"]])
    return found


def draw_errors(path: Path) -> None:
    """What each format of the state does to the reconstruction and to the gradient."""
    from bench.show import solver_figures

    solver_figures.draw_error(stored.lines(stored.EPYC, "solve.error"), path)


PICTURES = (
    Picture("memory-and-error", front.points, front.draw),
    Picture("error-against-depth", errors, draw_errors),
    Picture("study", study_figures.study, study_figures.draw_study),
    Picture("reasoning", study_figures.reasoning, study_figures.draw_reasoning),
)


def files() -> Iterator[tuple[str, Picture, bool]]:
    """Every file: its path, what it shows, and whether for a dark page."""
    for picture in PICTURES:
        for dark in (False, True):
            yield picture.path(dark=dark), picture, dark


def described(svg: str) -> dict[str, Any] | None:
    """The numbers that a file says it shows; None where it says nothing."""
    found = re.search(r"<desc>(.*?)</desc>", svg, re.DOTALL)
    return json.loads(unescape(found[1])) if found else None


def stale(picture: Picture, path: Path) -> bool:
    """Whether the file is not there, or shows other numbers than the stored lines."""
    return not path.exists() or described(path.read_text(encoding="utf-8")) != picture.shown()


def svg(picture: Picture, *, dark: bool) -> str:
    """The figure on a transparent ground, its text as text."""
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": picture.name,
        "savefig.transparent": True,
        "font.size": 10.5,
    }
    with TemporaryDirectory() as folder, matplotlib.rc_context(settings):
        path = Path(folder) / "figure.svg"
        picture.draw(path)
        text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", FONTS, text)
    ink = "#000000"  # text without a color of its own is black
    text = text.replace("</style>", f"text{{fill: {ink}}}</style>", 1)
    for light, other in DARK.items() if dark else ():
        text = text.replace(light, other)
    about = f"<desc>{escape(json.dumps(picture.shown()), quote=False)}</desc>"
    return text.replace(">", f' role="img">\n{about}', 1)
