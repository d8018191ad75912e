"""`python -m bench.solver`: time, memory and gradient error of a solve against its depth."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import compare, machine
from bench.__main__ import OUT, PLACES, device_argument
from bench.harness import Record
from bench.report import WIDTH, read
from bench.solver import figures, methods, models, peers, profiling, report
from bench.solver.measure import (
    COST_DEPTHS,
    ERROR_BETAS,
    ERROR_DEPTHS,
    OPTIONS_DEPTHS,
    PEERS_DEPTHS,
    Point,
    Settings,
    measure,
)

PARTS = ("cost", "options", "peers", "error")
QUICK_DEPTHS = (2, 8)
KNOWN = {
    "cost": methods.COST,
    "options": methods.OPTIONS,
    "peers": peers.PEERS,
    "error": methods.ERROR,
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.solver", description=__doc__)
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS, help=", ".join(PARTS))
    parser.add_argument("--models", nargs="*", default=list(models.MODELS), choices=models.MODELS)
    parser.add_argument("--providers", nargs="*", default=[], help="parts of provider names")
    parser.add_argument("--betas", nargs="*", type=float, help="instead of each part's own")
    parser.add_argument("--depths", nargs="*", type=int, help="numbers of steps, instead of these")
    parser.add_argument("--rounds", type=int, help="samples per provider (default 5 or 3)")
    parser.add_argument("--threads", type=int, help="on a CPU; default: all cores")
    parser.add_argument("--device", type=device_argument, help="cpu, cuda or cuda:N")
    parser.add_argument(
        "--jax-python",
        type=interpreter,
        default=sys.executable,
        metavar="PATH",
        help="an interpreter that has the authors' library, for the peers (default: this one)",
    )
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement")
    parser.add_argument(
        "--profile", action="store_true", help="instead: a trace of a step, and its parts"
    )
    parser.add_argument("--append", action="store_true", help="keep the lines that are there")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument(
        "--compare", type=compare.stored_lines, metavar="OLD", help="lines of an earlier run"
    )
    chosen = parser.parse_args(arguments)
    if chosen.profile and (chosen.append or chosen.compare is not None):
        parser.error("--profile: expected without --append and --compare, which are for times")
    return chosen


def interpreter(name: str) -> str:
    """The path of a program; no link is followed, for a virtual environment is known by it."""
    found = shutil.which(name)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected the path of a Python interpreter, got {name!r}")
    return found


def settings_of(chosen: argparse.Namespace) -> Settings:
    """How to measure, with the defaults of the device."""
    device = chosen.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = None if device.type == "cuda" else chosen.threads or machine.usable_cores()
    if device.type == "cuda":
        torch.cuda.set_device(0 if device.index is None else device.index)
    if chosen.quick:
        return Settings(device, threads, chosen.rounds or 3, 0.01, chosen.jax_python)
    return Settings(device, threads, chosen.rounds, jax_python=chosen.jax_python)


def points_of(chosen: argparse.Namespace) -> list[Point]:
    """What to measure, the shallow solves of each case first."""
    points: list[Point] = []

    def add(part: str, model: str, sizes: models.Sizes, beta: float, depths: Sequence[int]) -> None:
        known = KNOWN[part]
        wanted = tuple(m for m in known if wants(chosen.providers, m.name))
        depths = chosen.depths or (QUICK_DEPTHS if chosen.quick else depths)
        points.extend(Point(part, model, sizes, beta, n, wanted) for n in depths if wanted)

    if "cost" in chosen.parts:
        sizes = models.QUICK if chosen.quick else models.FULL
        betas = chosen.betas or ((0.5,) if chosen.quick else tuple(COST_DEPTHS))
        for model in chosen.models:
            for beta in betas:
                add("cost", model, sizes, beta, COST_DEPTHS.get(beta, COST_DEPTHS[0.5]))
    if "options" in chosen.parts:
        sizes = models.QUICK if chosen.quick else models.FULL
        for model in chosen.models:
            add("options", model, sizes, 0.5, OPTIONS_DEPTHS)
    if "peers" in chosen.parts:
        sizes = models.QUICK if chosen.quick else models.FULL
        for model in chosen.models:
            for beta in chosen.betas or (0.5,):
                add("peers", model, sizes, beta, PEERS_DEPTHS)
    if "error" in chosen.parts and "block" in chosen.models:
        sizes = models.QUICK if chosen.quick else models.ERROR
        for beta in chosen.betas or ERROR_BETAS:
            add("error", "block", sizes, beta, ERROR_DEPTHS)
    return points


def wants(parts: Sequence[str], name: str) -> bool:
    """Whether `--providers` leaves a provider in. The loop that times are held to always stays."""
    return not parts or name == methods.LOOP.name or any(part in name for part in parts)


def run(
    points: Sequence[Point],
    settings: Settings,
    file: Path,
    console: Console,
    *,
    append: bool,
    command: str,
) -> list[Record]:
    """Measure the points; the lines of each are on disk as soon as it is done."""
    facts = machine.facts(settings.device) | {"command": command}
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    records: list[Record] = []
    columns = TextColumn("{task.description:24}"), BarColumn(), TimeElapsedColumn()
    mode = "a" if append else "w"
    with file.open(mode, encoding="utf-8") as lines, Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=sum(point.steps for point in points))
        for point in points:
            bar.update(task, description=f"{point.model} beta {point.beta:g} N {point.steps}")
            model = models.make(point.model, point.sizes, settings.device)
            for record in measure(point, settings, model):
                records.append(record | facts)
                lines.write(json.dumps(records[-1], allow_nan=False) + "\n")
            lines.flush()
            bar.advance(task, point.steps)
    return records


def profile(chosen: argparse.Namespace, command: str) -> int:
    """Trace, store and print; 1 where a provider was refused, else 0."""
    settings = settings_of(chosen)
    sizes = models.QUICK if chosen.quick else models.FULL
    wanted = profiling.wanted(chosen.providers)
    points = [
        Point(profiling.PART, model, sizes, beta, steps, wanted)
        for model in chosen.models
        for beta in chosen.betas or profiling.BETAS
        for steps in chosen.depths or profiling.DEPTHS
    ]
    chosen.out.mkdir(parents=True, exist_ok=True)
    facts = machine.facts(settings.device) | {"command": command}
    records = profiling.run_points(points, settings, facts, chosen.out)
    console = Console(width=None if sys.stdout.isatty() else WIDTH + 26)
    profiling.print_tables(console, records)
    traces = [chosen.out / record["trace"] for record in records if not record["refused"]]
    written = [chosen.out / "profile.jsonl", *traces]
    console.print(f"written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
    return 1 if any(record["refused"] for record in records) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, store, print and draw; 1 where a provider was refused, else 0."""
    chosen = parse(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    command = machine.command_line("bench.solver", given, places=(*PLACES, "--jax-python"))
    if chosen.profile:
        return profile(chosen, command)
    points = points_of(chosen)
    if not points:
        sys.exit("python -m bench.solver: the options leave nothing to measure")
    chosen.out.mkdir(parents=True, exist_ok=True)
    results = chosen.out / "solver.jsonl"
    console = Console(width=None if sys.stdout.isatty() else WIDTH + 26)
    settings = settings_of(chosen)
    records = run(points, settings, results, console, append=chosen.append, command=command)
    report.print_tables(console, records)
    written = [results]
    stored = read(results)
    for draw, name in (
        (figures.draw_cost, "solver.png"),
        (figures.draw_error, "error-against-depth.png"),
    ):
        picture = chosen.out / name
        picture.unlink(missing_ok=True)
        if draw(stored, picture):
            written.append(picture)
    console.print(f"written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
    if chosen.compare is not None:
        compare.print_changes(console, chosen.compare, records)
    return 1 if any(record["refused"] for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
