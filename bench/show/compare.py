"""`python -m bench.show.compare OLD NEW`: compare two runs on one machine.

`python -m bench --compare OLD` does the same at the end of a run.
`bench/README.md` defines what counts as a change.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench import suite
from bench.core import stored
from bench.core.command_line import Parser
from bench.core.session import Record
from bench.core.table import Column, Table, listing
from bench.show import terminal
from bench.solver.columns import SOLVER

# What must agree between two lines for one to be the other, measured again.
SAME = (
    "benchmark", "part", "op", "variant", "provider", "dtypes", "beta", "steps", "size_mb",
    "elements", "threads", "axis", "budget_bytes", "features", "rows",
)  # fmt: skip
# Samples per provider: with these rules one time in a hundred that did not change is marked.
ENOUGH, SOME = 5, 3
# What a count of bytes, or an error, may change by. They do not depend on the machine's other work.
BYTES, ERROR = 1.01, 1.25
# Columns that the table needs; used where the output goes to a file.
WIDTH = 154


@dataclass(frozen=True)
class Change:
    """A line and the same line of an earlier run. Ratios are new over old, None without one.

    `yardstick` is the ratio of the times of `copy_` or the loop in the same case, where one of the
    runs met a busy machine, and 1 otherwise.
    """

    old: Record
    new: Record
    yardstick: float

    @property
    def time(self) -> float | None:
        """Of the medians."""
        return self._ratio("p50_seconds")

    @property
    def noise(self) -> float:
        """By what factor the time may differ where nothing changed.

        How far the samples of both runs spread, p20 to p80 in each. Few samples hide their spread:
        below `ENOUGH` the factor is squared, and below `SOME` nothing can be said.
        """
        samples = min(self.old["samples"], self.new["samples"])
        if samples < SOME:
            return math.inf
        spread = math.prod(r["p80_seconds"] / r["p20_seconds"] for r in (self.old, self.new))
        return spread if samples >= ENOUGH else spread**2

    @property
    def peak(self) -> float | None:
        """Of the bytes at the peak; None where the peak is what a budget left room for."""
        return None if "largest" in self.new else self._ratio("peak_bytes")

    @property
    def error(self) -> float | None:
        """Of the errors of the gradient; infinite where there was none before."""
        return self._ratio("gradient_error")

    def _ratio(self, name: str) -> float | None:
        old, new = self.old.get(name), self.new.get(name)
        if old is None or new is None:
            return None
        if old == new:
            return 1.0
        return new / old if old else math.inf

    def marks(self) -> list[str]:
        """What changed beyond noise, in words."""
        if self.old["refused"] or self.new["refused"]:
            texts = {(True, False): "no longer fails", (False, True): "now fails"}
            text = texts.get((bool(self.old["refused"]), bool(self.new["refused"])))
            return [] if text is None else [text]
        found = [self._time_mark()]
        found.append(_mark(self.peak, BYTES, "more memory", "less memory"))
        found.append(_mark(self.error, ERROR, "larger error", "smaller error"))
        found.append(_mark(self._ratio("largest"), 1.0, "fits more", "fits less"))
        if self.old.get("raises") != self.new.get("raises"):
            found.append("now raises" if self.new.get("raises") else "no longer raises")
        return [mark for mark in found if mark]

    def _time_mark(self) -> str:
        """Slower than both no change and the yardstick's change allow, or faster than both."""
        if self.time is None:
            return ""
        if self.time > max(1.0, self.yardstick) * self.noise:
            return "slower"
        if self.time < min(1.0, self.yardstick) / self.noise:
            return "faster"
        return ""


def _mark(ratio: float | None, allowed: float, more: str, less: str) -> str:
    if ratio is None or 1 / allowed <= ratio <= allowed:
        return ""
    return more if ratio > allowed else less


def identity(record: Record) -> str:
    """What a line measures, on what: equal for a line and for the same one measured again."""
    return repr([record.get(name) for name in SAME])


def machine(record: Record) -> tuple[str, int | None]:
    """What times depend on first: figures of two machines or thread counts are not compared."""
    return record["device_name"], record["threads"]


def changes(old: Iterable[Record], new: Iterable[Record]) -> list[Change]:
    """Every line of `new` that `old` has too, from the same machine; of equal lines the last."""
    before = {(machine(r), identity(r)): r for r in old}
    after = {(machine(r), identity(r)): r for r in new}
    pairs = [(before[key], record) for key, record in after.items() if key in before]
    yardsticks = {
        case(n): _yardstick(o, n) for o, n in pairs if n["provider"] == suite.family_of(n).yardstick
    }
    return [Change(o, n, yardsticks.get(case(n), 1.0)) for o, n in pairs]


def case(record: Record) -> str:
    """What a line has in common with its yardstick."""
    names = [name for name in SAME if name != "provider"]
    if suite.family_of(record) is SOLVER:
        names.remove("dtypes")  # there they are the provider's
    return repr([record.get(name) for name in names])


def _yardstick(old: Record, new: Record) -> float:
    busy = any(map(stored.busy, (old, new)))
    if not busy or old["refused"] or new["refused"] or "p50_seconds" not in old:
        return 1.0
    return new["p50_seconds"] / old["p50_seconds"]


def _cell(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _noise(change: Change) -> str:
    if change.time is None:
        return ""
    yardstick = "" if change.yardstick == 1 else f", yardstick {change.yardstick:.2f}x"
    noise = f"{change.noise:.2f}x" if math.isfinite(change.noise) else "few samples"
    return f"{noise}{yardstick}"


COLUMNS = (
    Column("provider", lambda change: change.new["provider"], left=True),
    Column("time new/old", lambda change: _cell(change.time)),
    Column("noise", _noise),
    Column("peak", lambda change: _cell(change.peak)),
    Column("gradient error", lambda change: _cell(change.error)),
    Column("", lambda change: ", ".join(change.marks()), left=True),
)


def table_of(found: Sequence[Change]) -> Table:
    """One row for each provider of each case."""
    case = Column("case", lambda change: suite.family_of(change.new).label(change.new), left=True)
    return listing(found, (case,), COLUMNS, strong=lambda change: bool(change.marks()))


def print_changes(console: Console, old: Sequence[Record], new: Sequence[Record]) -> bool:
    """The table and what it leaves out; False where no line could be compared."""
    found = changes(old, new)
    machines = [{machine(record) for record in lines} for lines in (old, new)]
    if not found:
        names = [", ".join(map(_machine_text, sorted(m, key=str))) or "no lines" for m in machines]
        console.print(
            "compare: expected lines of the same cases, machine and thread count in both, got "
            f"none; old: {names[0]}; new: {names[1]}. Measure both on one machine, with one "
            "--threads",
            style="red",
            highlight=False,
        )
        return False
    terminal.print_table(console, table_of(found))
    marked = sum(bool(change.marks()) for change in found)
    commits = [", ".join(sorted({record["commit"] for record in lines})) for lines in (old, new)]
    console.print(
        f"{marked} of {len(found)} changed beyond noise; old: commit {commits[0]}, new: commit "
        f"{commits[1]}",
        highlight=False,
    )
    alone = len({(machine(r), identity(r)) for r in new}) - len(found)
    if alone:
        console.print(
            f"{alone} lines are not compared: the old run has none of the same case, machine and "
            "thread count",
            highlight=False,
        )
    return True


def _machine_text(key: tuple[str, int | None]) -> str:
    name, threads = key
    return name if threads is None else f"{name} with threads={threads}"


def stored_lines(path: str) -> list[Record]:
    """The lines of an earlier run, read before a new one takes the place of its file."""
    try:
        return stored.read_all([Path(path)])
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"expected a file of JSON lines that a run has written, or their folder, got {path}: "
            f"{error}"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; 1 where there was nothing to compare."""
    parser = Parser(prog="python -m bench.show.compare", description=__doc__)
    parser.add_argument("old", type=stored_lines, help="earlier run: a file or a folder")
    parser.add_argument("new", type=stored_lines, help="later run: a file or a folder")
    chosen = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    return 0 if print_changes(console, chosen.old, chosen.new) else 1


if __name__ == "__main__":
    sys.exit(main())
