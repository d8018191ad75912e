"""The command line of `python -m bench`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.cell.sizes import DTYPES
from bench.core import machine, timing
from bench.core.command_line import Parser
from bench.core.session import Session, Tier
from bench.show import compare
from bench.solver.models import MODELS

OUT = Path(__file__).resolve().parent / "out"
# Options that say where files are, and nothing of what is measured.
PLACES = ("--out", "--compare", "--jax-python")
ABOUT = (
    "Compare every op and the solver with eager and compiled PyTorch baselines: time, memory and "
    "gradient error."
)
MINUTES = 6.0
"""What a run of all benchmarks takes at most, on any machine; --full has no limit."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options as they were given."""
    parser = Parser(prog="python -m bench", description=ABOUT)
    what = parser.add_argument_group("what to run, and for how long")
    what.add_argument("--list", action="store_true", help="list the benchmarks and exit")
    what.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PART",
        help="only the benchmarks (or ops) whose names contain one of these",
    )
    tiers = what.add_mutually_exclusive_group()
    tiers.add_argument(
        "--quick", action="store_true", help="smoke run at small sizes; not for quoting"
    )
    tiers.add_argument("--full", action="store_true", help="all cases at all sizes and depths")
    what.add_argument(
        "--minutes",
        type=positive,
        metavar="M",
        help="end after this many minutes, with the rows measured until then (default: "
        f"{MINUTES:g}; no limit with --full or --only)",
    )
    what.add_argument(
        "--profile",
        action="store_true",
        help="where the time of a training step goes: --only solve.profile nsight",
    )
    what.add_argument(
        "--without-compiled",
        action="store_true",
        help="measure even if this project's compiled kernels are missing",
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--device", type=device, help="cpu, cuda or cuda:N (default: a GPU if there is one)"
    )
    where.add_argument(
        "--out", type=Path, default=OUT, help="folder of the results (default: bench/out)"
    )
    where.add_argument("--append", action="store_true", help="add to the results in that folder")
    where.add_argument(
        "--compare",
        type=compare.stored_lines,
        metavar="OLD",
        help="folder or file of an earlier run: print what changed by more than noise",
    )
    where.add_argument(
        "--jax-python",
        type=interpreter,
        default=sys.executable,
        metavar="PATH",
        help="Python interpreter that has the authors' JAX library (default: this one)",
    )
    _add_cases(parser.add_argument_group("which cases (default: those of each benchmark)"))
    chosen = parser.parse_args(arguments)
    if chosen.minutes is None and not (chosen.full or chosen.only or chosen.profile):
        chosen.minutes = MINUTES
    if chosen.profile:
        if chosen.only or chosen.compare is not None:
            parser.error("--profile: expected without --only and --compare")
        chosen.only = ["solve.profile", "nsight"]
    return chosen


def _add_cases(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--providers", nargs="*", default=[], help="implementations, by parts of their names"
    )
    group.add_argument(
        "--threads",
        nargs="*",
        type=int,
        help="numbers of CPU threads; ops and cell use all of them, others the first",
    )
    group.add_argument("--samples", type=int, help="timing samples for each implementation")
    group.add_argument("--sizes-mb", nargs="*", type=float, help="ops: sizes of the state in MiB")
    group.add_argument(
        "--reference", action="store_true", help="ops: time the reference backend as well"
    )
    group.add_argument("--rows", nargs="*", type=int, help="cell: numbers of rows of the state")
    group.add_argument("--features", nargs="*", type=int, help="cell: numbers of features")
    group.add_argument("--dtypes", nargs="*", choices=DTYPES, help="cell: dtypes of the parameters")
    group.add_argument("--models", nargs="*", choices=MODELS, help="solve: models to iterate")
    group.add_argument("--betas", nargs="*", type=float, help="solve: values of beta")
    group.add_argument("--depths", nargs="*", type=int, help="solve, cell: numbers of steps N")
    group.add_argument("--budget-mb", type=float, help="solve.largest: memory budget in MiB")


def positive(text: str) -> float:
    """A number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def device(name: str) -> torch.device:
    """A device that there is a clock for."""
    try:
        found = torch.device(name)
    except RuntimeError:
        expected = " or ".join(timing.CLOCKS)
        raise argparse.ArgumentTypeError(f"expected {expected}, got {name!r}") from None
    if found.type not in timing.CLOCKS:
        expected = " or ".join(timing.CLOCKS)
        raise argparse.ArgumentTypeError(f"expected {expected}, got {name}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"torch {torch.__version__} finds no GPU, got {name}")
    return found


def interpreter(name: str) -> str:
    """The path of a program; no link is followed, for a virtual environment is known by it."""
    found = shutil.which(name)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected the path of a Python interpreter, got {name!r}")
    return found


def session(chosen: argparse.Namespace, given: Sequence[str]) -> Session:
    """The run that is asked for, on the GPU if there is one and nothing else was said."""
    where = chosen.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if where.type == "cuda":
        torch.cuda.set_device(0 if where.index is None else where.index)
    tier: Tier = "quick" if chosen.quick else "full" if chosen.full else "default"
    command = machine.command_line("bench", given, places=PLACES)
    facts = machine.facts(where) | {"command": command, "tier": tier}
    return Session(chosen, where, tier, facts)
