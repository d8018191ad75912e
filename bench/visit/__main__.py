"""`python -m bench.visit`: one call of a visit to a GPU, or what was brought home from it."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.core.command_line import Parser
from bench.visit import report, runner
from bench.visit.steps import CALLS, ROOT, Place

WORK = ROOT / "bench" / "out" / "visit"
ABOUT = "One visit to a GPU: is it right, and how fast is it. Nothing is installed."


def main(arguments: Sequence[str] | None = None, began: float | None = None) -> int:
    """0, or 1 where a step failed, ran out of time or was interrupted."""
    began = time.monotonic() if began is None else began
    chosen = parse(arguments)
    if chosen.what == "list":
        print(listing(), end="")
        return 0
    if chosen.what == "keep":
        from bench.visit import keep

        return keep.main(chosen.folder)
    return visit(chosen, began)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options as they were given."""
    parser = Parser(prog="bench/campaign.sh", description=ABOUT)
    known = parser.add_subparsers(dest="what", required=True, metavar="{right,fast,keep,list}")
    for name, call in CALLS.items():
        about = f"a call of {call.seconds} s: {', '.join(step.name for step in call.steps)}"
        one = known.add_parser(name, help=about, description=about)
        one.add_argument(
            "--dry-run", action="store_true", help="every step in small, on this machine's CPU"
        )
        one.add_argument(
            "--seconds",
            type=float,
            default=call.seconds,
            help="time limit (default: that of the call)",
        )
        one.add_argument(
            "--only",
            nargs="+",
            choices=[s.name for s in call.steps],
            default=[],
            help="only these steps",
        )
        one.add_argument(
            "--out",
            type=Path,
            default=Path(os.environ.get("OUT") or WORK / "handed-over"),
            help="folder of the three files that are handed over (default: $OUT)",
        )
    home = known.add_parser("keep", help="store the figures of a visit, and what it validated")
    home.add_argument("folder", type=Path, nargs="+", help="that of the files handed over")
    known.add_parser("list", help="the steps, with the seconds that they should and may take")
    return parser.parse_args(arguments)


def listing() -> str:
    """The table of steps."""
    lines = []
    for name, call in CALLS.items():
        lines.append(f"{name}: {call.seconds} s")
        lines += [
            f"  {s.name:12}{s.expected:4} s expected, {s.limit:4} s at most  {s.about}"
            for s in call.steps
        ]
    return "\n".join(lines) + "\n"


def visit(chosen: argparse.Namespace, began: float) -> int:
    """Run the steps, and hand over after each of them; SIGTERM is an interrupt.

    2 where nothing can be handed over, before any step.
    """
    name, call = chosen.what, CALLS[chosen.what]
    if chosen.only:
        call = type(call)(call.seconds, tuple(s for s in call.steps if s.name in chosen.only))
    place = Place(not chosen.dry_run, WORK / name)
    shutil.rmtree(place.work, ignore_errors=True)
    for folder in (place.work, runner.cache()):
        folder.mkdir(parents=True, exist_ok=True)
    where = "in small on a CPU" if chosen.dry_run else "on a GPU"

    def hand_over(results: Sequence[runner.Result]) -> str:
        spent = time.monotonic() - began
        about = f"{name}, {where}: {spent:.0f} of {chosen.seconds:.0f} s"
        return report.hand_over(name, about, results, place.work, chosen.out)

    def after(results: Sequence[runner.Result]) -> None:
        try:
            hand_over(results)
        except OSError as error:  # perhaps after the next step there is room
            print(f"not handed over: {error}", flush=True)

    try:
        chosen.out.mkdir(parents=True, exist_ok=True)
        hand_over([])
    except OSError as error:
        print(f"--out: expected a folder that can be written to, got {chosen.out}: {error}")
        return 2
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results = runner.run(call, place, chosen.seconds, began, after)
    finally:
        signal.signal(signal.SIGTERM, before)
    print(hand_over(results))
    return 0 if all(r.outcome in (runner.PASSED, runner.SKIPPED) for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
