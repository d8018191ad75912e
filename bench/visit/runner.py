"""Runs the steps of a call within its seconds: a log for each, and no step stops the next.

A step may take its own limit and what the steps before it have left over, but never what belongs to
a later one. At its limit it is told to end, so that it prints what it has, and soon after killed
with all its processes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.visit.steps import ROOT, Call, Place, Step, cuda_folders

HAND_OVER = 10.0
"""Seconds of a call that no step gets."""
GRACE = 5.0
"""Seconds between the word to end and the kill."""
LEAST = 5.0
"""No step is begun that has fewer."""

PASSED, FAILED, TIMED_OUT, SKIPPED = "passed", "failed", "out of time", "skipped"
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Result:
    """What came of a step: its outcome, the seconds that it took and might have taken, and why."""

    step: str
    outcome: str
    seconds: float = 0.0
    allowed: float = 0.0
    why: str = ""


def run(
    call: Call,
    place: Place,
    seconds: float,
    began: float,
    after: Callable[[Sequence[Result]], None] = lambda results: None,
) -> list[Result]:
    """Every step in turn, with `after` called after each one; `began` by time.monotonic().

    An interrupt ends the step that runs, with all its processes, and begins no other.
    """
    results: list[Result] = []
    for k, step in enumerate(call.steps):
        later = sum(each.limit for each in call.steps[k + 1 :])
        allowed = seconds - HAND_OVER - (time.monotonic() - began) - later
        print(f"{step.name}: {step.about}", flush=True)
        begin = time.monotonic()
        try:
            result = one(step, place, allowed)
        except KeyboardInterrupt:
            results.append(Result(step.name, INTERRUPTED, time.monotonic() - begin, allowed))
            break
        results.append(result)
        print(f"{step.name}: {result.outcome}, {result.seconds:.0f} s {result.why}", flush=True)
        after(results)
    return results


def one(step: Step, place: Place, allowed: float) -> Result:
    """A step, if what it needs is here and there is time."""
    if place.on_gpu and (lacking := step.lacks()):
        return Result(step.name, SKIPPED, why=f"needs {', '.join(lacking)}")
    if allowed < LEAST:
        return Result(step.name, SKIPPED, why="no time was left")
    begin = time.monotonic()
    code = execute(step, place, allowed - GRACE)
    spent = time.monotonic() - begin
    why = "; ".join(step.notes())
    if code is None:
        return Result(step.name, TIMED_OUT, spent, allowed, why)
    if code:
        meaning = step.codes.get(code, "")
        why = "; ".join(filter(None, [f"exit {code}", meaning, why]))
    return Result(step.name, FAILED if code else PASSED, spent, allowed, why)


def execute(step: Step, place: Place, allowed: float) -> int | None:
    """Run its command; its exit code, or None where it was stopped at its limit."""
    with (place.work / f"{step.name}.log").open("wb") as log:
        process = subprocess.Popen(
            step.command(place),
            cwd=ROOT,
            env=environment(place) | dict(step.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code: int | None = None
        try:
            code = process.wait(allowed)
        except subprocess.TimeoutExpired:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE - 1)
        finally:
            kill(process)
    return code


def kill(process: subprocess.Popen[bytes]) -> None:
    """End it and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(place: Place) -> dict[str, str]:
    """Of every step: this tree is on the path, nothing is installed, and Triton keeps its code."""
    carried = os.environ.get("PYTHONPATH")  # packages that the machine has not got itself
    modules = [str(ROOT), str(ROOT / "python"), *([carried] if carried else [])]
    found = os.environ | {
        "PATH": os.pathsep.join([os.environ.get("PATH", ""), *cuda_folders()]),
        "PYTHONPATH": os.pathsep.join(modules),
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "TRITON_CACHE_DIR": str(cache()),
    }
    if place.on_gpu:
        found["OMP_NUM_THREADS"] = "2"  # many processes share the cores
    return found


def cache() -> Path:
    """Where Triton's compiled kernels are kept from one call to the next."""
    return ROOT / "build" / "triton-cache"
