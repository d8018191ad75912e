"""`python -m bench`: measure every op against what a user could write, and against `copy_`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import compare, harness, machine, plot, report, timing
from bench.case import MEBIBYTE, Case, Plan
from bench.harness import Record

OUT = Path(__file__).resolve().parent / "out"
# Options that say where files are, and nothing of what is measured.
PLACES = ("--out", "--compare")
CPU_SIZES_MB = (64.0,)
GPU_SIZES_MB = (256.0, 64.0, 1024.0)
# A pass on an exact state holds most: the state, its float64 twin, f, cast, grad, vjp, seed, both
# ends of the copy and what the alternatives allocate, about sixteen states.
GPU_STATES_HELD = 20


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="parts of benchmark.op to run")
    parser.add_argument("--providers", nargs="*", default=[], help="parts of provider names")
    parser.add_argument("--sizes-mb", nargs="*", type=float, help="size of the state in MiB")
    parser.add_argument("--threads", nargs="*", type=int, help="thread counts, CPU only")
    parser.add_argument(
        "--device", type=device_argument, help="cpu, cuda or cuda:N; default: a GPU if there is one"
    )
    parser.add_argument("--samples", type=int, help="samples per provider (default 5 or 3)")
    parser.add_argument("--reference", action="store_true", help="time the reference backend too")
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument(
        "--compare", type=compare.stored_lines, metavar="OLD", help="lines of an earlier run"
    )
    return parser.parse_args(arguments)


def device_argument(name: str) -> torch.device:
    """A device that there is a clock for."""
    device = torch.device(name)
    if device.type not in timing.CLOCKS:
        expected = " or ".join(timing.CLOCKS)
        raise argparse.ArgumentTypeError(f"expected {expected}, got {name}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"torch {torch.__version__} finds no GPU, got {name}")
    return device


def plan_of(chosen: argparse.Namespace) -> Plan:
    """The plan that the command line asks for, with the defaults of the device."""
    device = chosen.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(0 if device.index is None else device.index)
    quick = chosen.quick
    sizes = tuple(chosen.sizes_mb or ((8.0,) if quick else default_sizes(device)))
    cache = machine.cache_bytes(device) or 32 * MEBIBYTE
    # Calls go round sets of tensors that together exceed the cache; a GPU has room for more.
    cold_bytes = 0 if quick else cache * (8 if device.type == "cuda" else 2)
    return Plan(
        device=device,
        sizes_mb=sizes,
        threads=thread_counts(chosen, device),
        samples=chosen.samples or (3 if quick else 5),
        side_samples=chosen.samples or 3,
        sample_seconds=0.01 if quick else 0.1,
        cold_bytes=cold_bytes,
        only=tuple(chosen.only),
        providers=tuple(chosen.providers),
        reference=chosen.reference,
        headline_only=quick and not chosen.only,
    )


def default_sizes(device: torch.device) -> tuple[float, ...]:
    """Sizes beyond the cache that fit the device; the first one runs every case."""
    if device.type == "cpu":
        return CPU_SIZES_MB
    memory = torch.cuda.get_device_properties(device).total_memory
    return tuple(size for size in GPU_SIZES_MB if size * MEBIBYTE * GPU_STATES_HELD <= memory)


def thread_counts(chosen: argparse.Namespace, device: torch.device) -> tuple[int | None, ...]:
    """All usable cores, two and one; None on a GPU, where the host's threads do nothing."""
    if device.type == "cuda":
        return (None,)
    if chosen.threads:
        return tuple(chosen.threads)
    cores = machine.usable_cores()
    counts = {cores} if chosen.quick else {cores, min(2, cores), 1}
    return tuple(sorted(counts, reverse=True))


def measure(
    plan: Plan, cases: list[tuple[float, Case]], results: Path, console: Console, command: str
) -> list[Record]:
    """Run the cases; every record is on disk as soon as its case is done."""
    facts = machine.facts(plan.device) | {"command": command}
    records: list[Record] = []
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with results.open("w", encoding="utf-8") as file, Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=harness.sample_count(plan, cases))
        for size_mb, case in cases:
            bar.update(task, description=case.op)
            advance = partial(bar.advance, task)
            for record in harness.run_case(plan, size_mb, case, facts, advance):
                records.append(record)
                file.write(json.dumps(record) + "\n")
            file.flush()
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, store, print and plot; 1 where a provider was refused, else 0."""
    chosen = parse(arguments)
    plan = plan_of(chosen)
    cases = harness.planned_cases(plan)
    if not cases:
        sys.exit("python -m bench: --only or --quick leaves nothing; see bench/benchmarks/")
    chosen.out.mkdir(parents=True, exist_ok=True)
    results, picture = chosen.out / "results.jsonl", chosen.out / "results.png"
    picture.unlink(missing_ok=True)
    console = Console(width=None if sys.stdout.isatty() else report.WIDTH)
    given = sys.argv[1:] if arguments is None else arguments
    command = machine.command_line("bench", given, places=PLACES)
    records = measure(plan, cases, results, console, command)
    report.print_table(console, records)
    written = [str(results)]
    if plot.draw(records, picture):
        written.append(str(picture))
    console.print(f"written: {', '.join(written)}", highlight=False, soft_wrap=True)
    if chosen.compare is not None:
        compare.print_changes(console, chosen.compare, records)
    return 1 if any(record["refused"] for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
