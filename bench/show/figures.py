"""All figures: `python -m bench.show.figures LINES... --out FOLDER` draws those of the lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.core import stored
from bench.core.command_line import Parser
from bench.core.session import Record
from bench.show import cell_figure as cell
from bench.show import ops_figure as plot
from bench.show import solver_bars as bars
from bench.show import solver_figures as solver
from bench.show.drawing import ENDINGS


@dataclass(frozen=True)
class Figure:
    """The figure of the benchmark `name`, whose lines are of that family.

    `draw` writes it to the paths; False, and no file, where there is nothing to draw.
    """

    name: str
    family: str
    title: str
    draw: Callable[..., bool]


FIGURES = (
    Figure("ops", "ops", "the ops, in percent of copy_", plot.draw),
    Figure("cell", "cell", "time against rows, and the roofline", cell.draw),
    Figure("solve.cost", "solver", "time, memory and gradient error against N", solver.draw_cost),
    Figure("solve.error", "solver", "errors of the state's formats against N", solver.draw_error),
    Figure("solve.largest", "solver", "the largest N and batch that fit", bars.draw_largest),
    Figure("solve.overhead", "solver", "the cost of a half step with a tiny f", bars.draw_overhead),
)


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """The figures of these lines, as PNG and as SVG: what was written."""
    written: list[Path] = []
    for figure in FIGURES:
        paths = [folder / f"{figure.name}{ending}" for ending in ENDINGS]
        if figure.draw(records, *paths):
            written += paths
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; 1 where the lines hold nothing to draw."""
    parser = Parser(prog="python -m bench.show.figures", description=__doc__)
    parser.add_argument(
        "lines",
        nargs="+",
        type=Path,
        help="files of JSON lines, or folders of them, of one machine",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    written = draw(stored.read_all(chosen.lines), chosen.out)
    print(f"written: {', '.join(map(str, written)) or 'nothing'}")
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
