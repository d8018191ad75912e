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
from bench.core.session import Session, Tier
from bench.show import compare
from bench.solver.models import MODELS

OUT = Path(__file__).resolve().parent / "out"
# Options that say where files are, and nothing of what is measured.
PLACES = ("--out", "--compare", "--jax-python")
ABOUT = "Measure this project beside what a user could have instead: time, memory and errors."


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options as they were given."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=ABOUT)
    what = parser.add_argument_group("what, and how long")
    what.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    what.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="benchmarks by parts of their names"
    )
    tiers = what.add_mutually_exclusive_group()
    tiers.add_argument("--quick", action="store_true", help="a look at small sizes")
    tiers.add_argument("--full", action="store_true", help="the whole measurement")
    what.add_argument(
        "--profile",
        action="store_true",
        help="where the time of a step goes: --only solve.profile nsight",
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--device", type=device, help="cpu, cuda or cuda:N; default: a GPU if there is one"
    )
    where.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    where.add_argument("--append", action="store_true", help="keep the lines that are there")
    where.add_argument(
        "--compare",
        type=compare.stored_lines,
        metavar="OLD",
        help="the folder or a file of an earlier run: say what changed beyond noise",
    )
    where.add_argument(
        "--jax-python",
        type=interpreter,
        default=sys.executable,
        metavar="PATH",
        help="an interpreter that has the authors' library (default: this one)",
    )
    _add_cases(parser.add_argument_group("which cases, instead of each benchmark's own"))
    chosen = parser.parse_args(arguments)
    if chosen.profile:
        if chosen.only or chosen.compare is not None:
            parser.error("--profile: expected without --only and --compare")
        chosen.only = ["solve.profile", "nsight"]
    return chosen


def _add_cases(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--providers", nargs="*", default=[], help="parts of provider names")
    group.add_argument(
        "--threads", nargs="*", type=int, help="on a CPU; all but ops and cell use the first"
    )
    group.add_argument("--samples", type=int, help="samples per provider")
    group.add_argument("--sizes-mb", nargs="*", type=float, help="ops: MiB of the state")
    group.add_argument("--reference", action="store_true", help="ops: the reference backend too")
    group.add_argument("--rows", nargs="*", type=int, help="cell: rows of the state")
    group.add_argument("--features", nargs="*", type=int, help="cell: its features")
    group.add_argument("--dtypes", nargs="*", choices=DTYPES, help="cell: of its parameters")
    group.add_argument("--models", nargs="*", choices=MODELS, help="solve: the maps")
    group.add_argument("--betas", nargs="*", type=float, help="solve")
    group.add_argument("--depths", nargs="*", type=int, help="solve, cell: numbers of steps N")
    group.add_argument("--budget-mb", type=float, help="solve.largest: MiB that must suffice")


def device(name: str) -> torch.device:
    """A device that there is a clock for."""
    found = torch.device(name)
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
