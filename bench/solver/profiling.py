"""`python -m bench.solver --profile`: a trace of a step of each method, and where its time went."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from bench import timing
from bench.harness import Record
from bench.report import print_machine
from bench.solver import methods, models, report
from bench.solver.attribution import PARTS, STEP, Nodes, Parts, parts_of
from bench.solver.measure import Point, Settings, blank_record
from bench.solver.methods import Method, Run
from bench.solver.ranges import named, ranges

PART = "profile"
DEPTHS = (8,)
BETAS = (0.5,)
ROUNDS = 5
# A graph that torch.compile made has no place for ranges.
METHODS = tuple(dict.fromkeys(m for m in (*methods.COST, *methods.OPTIONS) if not m.compiled))


def run_points(
    points: Sequence[Point], settings: Settings, facts: Record, folder: Path
) -> list[Record]:
    """Profile the points; their lines in `profile.jsonl`, the traces beside it."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    records: list[Record] = []
    with (folder / "profile.jsonl").open("w", encoding="utf-8") as file:
        for point in points:
            model = models.make(point.model, point.sizes, settings.device)
            for record in measure(point, settings, model, folder):
                records.append(record | facts)
                file.write(json.dumps(records[-1], allow_nan=False) + "\n")
                file.flush()
    return records


def wanted(names: Sequence[str]) -> tuple[Method, ...]:
    """The methods that are named by parts of their names, or those of "cost"; always the loop."""
    if not names:
        return methods.COST
    return tuple(m for m in METHODS if m == methods.LOOP or any(part in m.name for part in names))


def measure(
    point: Point, settings: Settings, model: models.Model, folder: Path
) -> Iterator[Record]:
    """One record for each method, and its trace in the folder; one that raises has its reason."""
    for method in point.methods:
        blank = blank_record(point, settings, method, model) | {"raises": False}
        try:
            run = Run(method, model.to(method.f), point.beta, point.steps)
            yield blank | profiled(run, settings, folder)
        except Exception as error:  # printed, stored, and makes the run fail
            yield blank | {"refused": f"{type(error).__name__}: {error}"}


def profiled(run: Run, settings: Settings, folder: Path) -> Record:
    """The parts of the shortest of some steps, and the shortest time of one without profiler.

    Each step is profiled alone, and its parts add up to it. In the shortest one other processes
    took the least: what they take falls on any part, in pieces of milliseconds.
    """
    device, clock = settings.device, timing.CLOCKS[settings.device.type]
    run.gradients()
    plain: list[float] = []
    steps: list[tuple[Parts, Path]] = []
    with TemporaryDirectory() as temporary:
        for i in range(settings.rounds or ROUNDS):
            plain.append(clock([run.gradients], 1))
            path = Path(temporary) / f"{i}.json.gz"
            _trace(run, device, path)
            with gzip.open(path, "rt", encoding="utf-8") as file:
                steps.append((parts_of(json.load(file)["traceEvents"], own_nodes()), path))
        parts, path = min(steps, key=lambda step: step[0].step)
        trace = folder / f"{trace_name(run)}.json.gz"
        shutil.move(path, trace)
    return {
        "step_seconds": parts.step,
        "plain_seconds": min(plain),
        "samples": len(steps),
        "host_seconds": parts.host,
        "device_seconds": parts.device,
        "trace": trace.name,
    }


def _trace(run: Run, device: torch.device, path: Path) -> None:
    # Above the level of two lines that the profiler prints for every session.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with ranges(run, device):
        with profile(activities=activities) as profiler, named(STEP, device):
            run.gradients()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        profiler.export_chrome_trace(str(path))


def trace_name(run: Run) -> str:
    """Of the file, without its ending."""
    text = f"{run.model.name} {run.method.name} beta {run.beta:g} N {run.steps}"
    return "trace-" + re.sub(r"[^A-Za-z0-9.]+", "-", text)


def own_nodes() -> Nodes:
    """The nodes of autograd's graph that this project has defined."""
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for node in torch.autograd.Function.__subclasses__():
        if node.__module__.startswith("torch_revdeq."):
            of_half_steps = node.__module__ == "torch_revdeq.nodes"
            found[of_half_steps].add(f"{node.__name__}Backward")
    return Nodes(solves=found[False], half_steps=found[True])


# ---- tables -----------------------------------------------------------------------------------


def tables(records: Sequence[Record]) -> list[Table]:
    """For each model, beta and depth: the parts, on the host and on the device."""
    found: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        found.setdefault((report.case_label(record), record["steps"]), []).append(record)
    return [
        _table(f"{case}, N = {steps}: {where}", lines, f"{where}_seconds")
        for (case, steps), lines in found.items()
        for where in ("host", "device")
        if all(line[f"{where}_seconds"] for line in lines)
    ]


def _table(title: str, records: Sequence[Record], name: str) -> Table:
    heads = [record["provider"] for record in records]
    table = Table(title, *heads, box=box.SIMPLE, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for part in PARTS:
        table.add_row(part, *(_cell(r[name][part], r["step_seconds"]) for r in records))
    table.add_section()
    totals = (_cell(r["step_seconds"], r["step_seconds"]) for r in records)
    table.add_row("the step", *totals, style="bold")
    plain = (_cell(r["plain_seconds"], r["step_seconds"]) for r in records)
    table.add_row("a step without profiler", *plain)
    return table


def _cell(seconds: float, step: float) -> str:
    return f"{1e3 * seconds:.2f} ms {seconds / step:4.0%}"


def print_tables(console: Console, records: Sequence[Record]) -> None:
    """The tables, and every refusal in full."""
    for table in tables([record for record in records if not record["refused"]]):
        console.print(table)
    if records:
        print_machine(console, records[0])
    for text in report.refusals(records):
        console.print(f"refused: {text}", style="red", highlight=False)
