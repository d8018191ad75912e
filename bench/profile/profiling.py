"""A trace of a step of each method, and where its time went: `python -m bench --profile`."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

from bench.core import timing
from bench.core.session import Bar, Record, Session
from bench.profile.attribution import STEP, Nodes, Parts, parts_of
from bench.profile.ranges import named, ranges
from bench.solver import methods, models, plan
from bench.solver.measure import Point, Settings, blank_record, settings_of
from bench.solver.methods import Run

PART = "profile"
ROUNDS = 5
# A graph that torch.compile made has no place for ranges.
METHODS = tuple(dict.fromkeys(m for m in (*methods.COST, *methods.OPTIONS) if not m.compiled))


def run(session: Session, bar: Bar) -> Iterator[Record]:
    """The lines, point by point; the traces stand in the folder of the results."""
    session.use_threads()
    # What a user names may be any method that has ranges; else those of "cost".
    known = METHODS if session.chosen.providers else plan.PARTS[PART].methods
    points = plan.points(PART, session, known)
    settings = settings_of(session)
    bar.total(len(points))
    for point in points:
        bar.at(f"{point.model} N {point.steps}")
        model = models.make(point.model, point.sizes, session.device)
        yield from measure(point, settings, model, session.chosen.out)
        bar.advance(1)


def measure(
    point: Point, settings: Settings, model: models.Model, folder: Path
) -> Iterator[Record]:
    """One record for each method, and its trace in the folder; one that raises has its reason."""
    for method in point.methods:
        blank = blank_record(point, settings, method, model) | {"raises": False}
        try:
            run = Run(method, model.to(method.f), point.beta, point.steps)
            yield blank | profiled(run, settings, folder)
        except methods.Skipped as missing:
            yield blank | {"skipped": str(missing)}
        except Exception as error:  # printed, stored, and makes the run fail
            yield blank | {"refused": timing.reason(error)}


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
            of_half_steps = node.__module__ == "torch_revdeq.adjoints.gradient_graph"
            found[of_half_steps].add(f"{node.__name__}Backward")
    return Nodes(solves=found[False], half_steps=found[True])
