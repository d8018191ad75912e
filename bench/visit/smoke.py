"""`python -m bench.visit.smoke`: every op of each backend against the reference, in every type.

Many processes, each with some samples of one op; a line of JSON for each as soon as it is done.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.core import machine
from bench.core.command_line import Parser
from bench.visit.spoiled import is_spoiled
from revdeq_kernels.core import first_use
from revdeq_kernels.core.op import OPS, Op
from revdeq_kernels.core.samples import WHOLE, Kind, Sample, kind_of, samples, samples_like

SAMPLES = 16
"""Of a task: of an op that Triton compiles 78 kernels for, no process does all."""

SAME = "same bits"


class Task(NamedTuple):
    """Some of the samples of one op on one backend: part `part` of `parts`."""

    backend: str
    op: str
    part: int
    parts: int


def given(backend: str, op: Op) -> Iterator[Sample]:
    """All samples of an op; for Triton those too of a size for which it compiles other code.

    Of lists not: there that code follows from the leaves one by one.
    """
    yield from samples(op)
    if backend != first_use.COMPILED_AS_CALLED or op.overload_name == "list":
        return
    kinds: set[Kind] = set()
    for args, keywords in samples(op):
        whole = kind_of(op, tuple(args), keywords)._replace(size=WHOLE)
        if whole not in kinds:
            kinds.add(whole)
            yield from samples_like(op, whole, args)


def tasks(backends: list[str]) -> list[Task]:
    """One backend after the other; ops on single leaves before lists, which compile longer."""
    names = sorted(OPS, key=lambda name: (name.endswith(".list"), "exact" not in name, name))
    found = []
    for backend in backends:
        for name in names:
            parts = -(-sum(1 for _ in given(backend, OPS[name])) // SAMPLES)
            found += [Task(backend, name, part, parts) for part in range(parts)]
    return found


_spoiled_by: str | None = None
"""The op after whose failure this process cannot use its GPU any more."""


def tried(task: Task) -> dict[str, Any]:
    """What came of it, as a line."""
    global _spoiled_by
    torch.set_num_threads(1)
    op = OPS[task.op]
    device = torch.device("cpu" if task.backend == "cpu" else "cuda:0")
    begin = time.perf_counter()
    said = SAME
    try:
        if _spoiled_by is not None:
            raise RuntimeError(f"not compared, in the process that {_spoiled_by} has spoiled")
        some = islice(given(task.backend, op), task.part * SAMPLES, (task.part + 1) * SAMPLES)
        first_use.compare(task.backend, op, device, partial(op.run, task.backend), some)
    except Exception as error:  # a finding, whatever it is
        said = f"{type(error).__name__}: {error}"
        if _spoiled_by is None and is_spoiled():
            _spoiled_by = task.op
    seconds = round(time.perf_counter() - begin, 3)
    return {"record": "smoke", **task._asdict(), "seconds": seconds, "said": said}


def about(backends: list[str]) -> dict[str, Any]:
    """The line that says where this was."""
    device = torch.device("cpu" if backends == ["cpu"] else "cuda:0")
    name = first_use.architecture(device) if device.type == "cuda" else None
    return {"record": "machine", "architecture": name, **machine.facts(device)}


def run(backends: list[str], processes: int) -> Iterator[dict[str, Any]]:
    """The machine, then a line for each task in the order in which they are done."""
    yield about(backends)
    if processes == 1:
        yield from map(tried, tasks(backends))
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(tried, tasks(backends))


def main() -> int:
    """1 where an op has other bits, or raises."""
    parser = Parser(prog="python -m bench.visit.smoke", description=__doc__)
    parser.add_argument("--backends", nargs="+", required=True, help="backends to try")
    parser.add_argument("--processes", type=int, default=1, help="how many at once")
    parser.add_argument("--lines", type=Path, required=True, help="the file to write to")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    count: Counter[str] = Counter()
    with chosen.lines.open("w", encoding="utf-8") as file:
        for line in run(chosen.backends, chosen.processes):
            file.write(json.dumps(line) + "\n")
            file.flush()
            if line["record"] == "smoke":
                wrong = line["said"] != SAME
                count["wrong" if wrong else "right"] += 1
                part = f"{line['part'] + 1}/{line['parts']}"
                where = f"{line['backend']:7} {line['op']:32} {part:>5}"
                print(f"{where} {line['seconds']:7.2f} s  {line['said']}", flush=True)
    print(f"{count['right']} parts have the reference's bits, {count['wrong']} do not")
    return 1 if count["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
