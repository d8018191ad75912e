"""`python -m bench.show.readme`: write the figures in the documents from the stored results.

And the table of the options of ``solve``, from the solver's own table and its docstring.

Each is between `<!-- figures:begin NAME -->` and `<!-- figures:end -->`. The figures in docs/
(pictures.py) are SVG, one for light and one for dark pages. `--check` writes nothing, and fails if
a document or a figure differs.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.core import machine
from bench.core.command_line import Parser
from bench.core.stored import XEON_AMX
from bench.show import cell_tables as cell
from bench.show import documents, front, options, pictures
from bench.show import kernel_tables as kernels

DOCUMENTS = (
    "README.md",
    "bench/README.md",
    "bench/ops.md",
    "bench/cell.md",
    "bench/solver.md",
    "bench/solver-figures.md",
    "docs/kernels.md",
    "docs/api/solver.md",
)
FIGURES: dict[str, Callable[[], str]] = {
    "front.caption": front.caption,
    "front.compared": front.compared,
    "ops.half_steps": documents.half_steps,
    "ops.summary": documents.summary,
    "solver.headline": documents.headline,
    "solver.cost": documents.cost,
    "solver.paper_blocks": documents.paper_blocks,
    "solver.options": documents.options,
    "solver.peers": documents.peers,
    "solver.largest": documents.largest,
    "solver.overhead": documents.overhead,
    "solver.profile": documents.profile,
    "solver.compiled": documents.compiled,
    "solver.to_compiled": documents.to_compiled,
    "cell": partial(cell.times, 1),
    "cell.threads": partial(cell.times, 2),
    "cell.amx": partial(cell.times, 1, XEON_AMX),
    "cell.memory": cell.memory,
    "cell.headline": cell.headline,
    "kernels.ops": kernels.ops,
    "options": options.table,
    "kernels.compiled": kernels.compiled,
    "kernels.cpu": partial(kernels.shares, "cpu"),
    "kernels.cuda": partial(kernels.shares, "cuda"),
}
BEGIN, END = "<!-- figures:begin {} -->", "<!-- figures:end -->"
MARKED = re.compile(r"<!-- figures:begin (\S+) -->.*?<!-- figures:end -->", re.DOTALL)
REMEDY = "write it with `make readme`"


def filled(text: str, name: str, known: Mapping[str, Callable[[], str]] = FIGURES) -> str:
    """The document `name` with its figures; ValueError where its markers are not in order.

    A sentence stands within its line; a table, on lines of its own.
    """
    if len(MARKED.findall(text)) != text.count("<!-- figures:begin"):
        raise ValueError(f"{name}: expected `{END}` after every beginning, and got another one")
    if text.count("<!-- figures:begin") != text.count(END):
        raise ValueError(f"{name}: expected `{BEGIN.format('NAME')}` before every `{END}`")

    def figure(found: re.Match[str]) -> str:
        if found[1] not in known:
            raise ValueError(
                f"{name}: expected one of {', '.join(known)}, got figures {found[1]!r}"
            )
        content = known[found[1]]()
        space = "\n" if "\n" in content or found[0].count("\n") else ""
        return f"{BEGIN.format(found[1])}{space}{content}{space}{END}"

    return MARKED.sub(figure, text)


def main(arguments: Sequence[str] | None = None, root: Path = machine.ROOT) -> int:
    """Write the documents, or say how they differ; 1 where one does."""
    parser = Parser(prog="python -m bench.show.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only check; fail on a difference")
    chosen = parser.parse_args(arguments)
    status = 0
    for name in DOCUMENTS:
        path = root / name
        before = path.read_text(encoding="utf-8")
        after = filled(before, name)
        if before == after:
            continue
        if chosen.check:
            status = 1
            lines = (before.splitlines(keepends=True), after.splitlines(keepends=True))
            sys.stderr.writelines(difflib.unified_diff(*lines, name, f"{name} from the results"))
            print(f"{name}: differs from the stored results: {REMEDY}", file=sys.stderr)
        else:
            path.write_text(after, encoding="utf-8")
            print(f"written: {name}")
    for name, picture, dark in pictures.files():
        path = root / name
        if not pictures.stale(picture, path):
            continue
        if chosen.check:
            status = 1
            print(f"{name}: what is stored gives another figure: {REMEDY}", file=sys.stderr)
        else:
            path.write_text(pictures.svg(picture, dark=dark), encoding="utf-8")
            print(f"written: {name}")
    return status


if __name__ == "__main__":
    sys.exit(main())
