"""What Nsight Compute reports on the kernels, next to the least time that their bytes take.

`ncu` runs this file as a program, which calls each op once between cudaProfilerStart and Stop; it
prints one row of metrics for every launch in it. It has not run on hardware yet: `parse` is tested
on a sample in the form that ncu's documentation gives.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import torch

import revdeq_kernels
from bench.cell import measure as cell
from bench.cell import methods as cell_methods
from bench.core import ceilings, labels, machine
from bench.core.case import Call, Case, Plan, Provider
from bench.core.ceilings import Ceilings
from bench.core.session import Bar, Record, Session
from bench.core.table import Column, Family, Table, listing, never
from bench.ops import run as ops
from revdeq_kernels.ops.cell import choice as cell_choice

NAME = "nsight"
PROVIDER = "Nsight Compute"
# What the lines hold, and the metric of ncu that it is, with --print-units base.
METRICS = {
    "device_seconds": "gpu__time_duration.sum",
    "dram_bytes": "dram__bytes.sum",
    "dram_bytes_per_second": "dram__bytes.sum.per_second",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "occupancy_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "tensor_percent": "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
}
NANOSECONDS = {"device_seconds": 1e-9}
# The namespace of the CUDA kernels, and the names of the cell's Triton kernels.
KERNELS = "regex:revdeq|forward_kernel|backward_kernel"
FILES = ("half_step", "exact_step", "adjoint", "passes")
SIZE_MB = 256.0
CELL = cell.Size("forward", torch.bfloat16, 64, 2**18, 8)
PATIENCE = 400.0
FORBIDDEN = "ERR_NVGPUCTRPERM"


@dataclass(frozen=True)
class Job:
    """One launch: what it is, the bytes and the operations that it cannot do without.

    `make` allocates what it takes and gives the call.
    """

    op: str
    types: str
    bytes: int
    operations: int
    make: Callable[[], Call]


def jobs(device: torch.device, size_mb: float = SIZE_MB) -> Iterator[Job]:
    """The headline cases of the ops, and the cell where it can run."""
    plan = Plan(device, sizes_mb=(size_mb,), threads=(None,), headline_only=True)
    for _, case in ops.planned_cases(plan):
        if case.benchmark in FILES and case.bytes is not None:
            facts = {"benchmark": case.benchmark, "op": case.op, "dtypes": case.dtype_names}
            facts |= {"beta": case.beta, "variant": case.variant}
            own = next(p for p in case.providers if p.name == f"revdeq {device.type}")
            make = partial(_bound, own, case)
            yield Job(labels.op_label(facts), labels.types_label(facts), case.bytes, 0, make)
    w = torch.empty(CELL.features, CELL.features, device=device, dtype=CELL.dtype)
    if device.type == "cuda" and cell_choice.why_not("triton", w, cell_methods.ACT) is None:
        moved, operations = cell.work(CELL)
        make = partial(_bound_cell, device)
        yield Job("linear_cell_forward", "bf16", moved, operations, make)


def _bound(provider: Provider, case: Case) -> Call:
    return provider.bind(case.make(case.elements))


def _bound_cell(device: torch.device) -> Call:
    return partial(cell_methods.ours("triton").solve, CELL.problem(device))


def program() -> None:
    """What ncu runs. Each call is made twice, so that its first use is not in the profile."""
    device = torch.device("cuda")
    with torch.no_grad(), revdeq_kernels.backend("cuda"):
        for job in jobs(device):
            call = job.make()
            call()
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            call()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()


def command(ncu: str) -> list[str]:
    """The command line of ncu, which is to leave the clocks of the card as they are."""
    return [
        ncu, "--clock-control", "none", "--profile-from-start", "off",
        "--csv", "--page", "raw", "--print-units", "base",
        "--kernel-name-base", "demangled", "--kernel-name", KERNELS,
        "--print-kernel-base", "function",
        "--metrics", ",".join(METRICS.values()), sys.executable, "-m", "bench.profile.nsight",
    ]  # fmt: skip


def parse(text: str) -> list[Record]:
    """One record for each launch, in their order; ValueError where no table is in the text.

    ncu prints lines of its own (`==PROF== ...`) before the head; below it stands the row of units.
    """
    lines = [line for line in text.splitlines() if not line.startswith("==")]
    starts = [i for i, line in enumerate(lines) if line.startswith('"ID"')]
    if len(starts) != 1:
        shown = "\n".join(lines[-5:])
        raise ValueError(f"ncu: expected one table with a column ID, got {len(starts)}:\n{shown}")
    rows = list(csv.DictReader(io.StringIO("\n".join(lines[starts[0] :]))))
    return [
        {"kernel": row["Kernel Name"]}
        | {name: _number(row.get(metric), name) for name, metric in METRICS.items()}
        for row in rows
        if row["ID"]
    ]


def _number(text: str | None, name: str) -> float | None:
    """A metric, with commas between thousands; None where this GPU does not have it."""
    try:
        value = float((text or "").replace(",", ""))
    except ValueError:  # "n/a"
        return None
    return value * NANOSECONDS.get(name, 1.0) if math.isfinite(value) else None


def lines_of(launches: Sequence[Record], known: Sequence[Job], limits: Ceilings) -> list[Record]:
    """Each launch with its floor; ValueError where there is not one for every job."""
    if len(launches) != len(known):
        names = ", ".join(launch["kernel"] for launch in launches) or "none"
        raise ValueError(f"ncu: expected one launch for each of {len(known)} calls, got {names}")
    rate = limits.matmul["bfloat16"]
    return [
        {"op": job.op, "dtypes": job.types, "bytes": job.bytes, "operations": job.operations}
        | launch
        | {"floor_seconds": max(job.bytes / limits.copy, job.operations / rate)}
        for job, launch in zip(known, launches, strict=True)
    ]


def run(session: Session, bar: Bar) -> Iterator[Record]:
    """One line for each kernel; one that says why where ncu cannot be asked."""
    blank: Record = {"benchmark": NAME, "op": "", "provider": PROVIDER, "kind": "revdeq"}
    blank |= {"threads": session.threads, "refused": None, "skipped": None}
    ncu = shutil.which("ncu")
    if session.device.type != "cuda" or ncu is None:
        wanted = "a GPU" if session.device.type != "cuda" else "ncu on the path"
        yield blank | {"skipped": f"expected {wanted}, got none"}
        return
    bar.at("ncu")
    done = subprocess.run(
        command(ncu),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=machine.ROOT,
    )
    if FORBIDDEN in done.stdout + done.stderr:
        yield blank | {"skipped": f"this user may not read the GPU's counters ({FORBIDDEN})"}
        return
    try:
        found = lines_of(parse(done.stdout), list(jobs(session.device)), ceilings.of(session))
    except ValueError as error:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        yield blank | {"refused": f"{error}; it ended with {done.returncode}: {' '.join(said)}"}
        return
    for line in found:
        yield blank | line


# ---- how its lines are shown ------------------------------------------------------------------


def _shown(head: str, name: str, text: Callable[[float], str]) -> Column:
    """A metric; nothing where this GPU does not have it."""
    return Column(head, lambda record: "" if record[name] is None else text(record[name]))


def _read(record: Record) -> str:
    read = record["dram_bytes"]
    return "" if read is None else f"{read / record['bytes']:.2f} of counted"


COLUMNS = (
    *(Column(h, itemgetter(n), left=True) for h, n in (("op", "op"), ("types", "dtypes"))),
    Column("kernel", itemgetter("kernel"), left=True),
    _shown("time", "device_seconds", labels.seconds_cell),
    _shown("floor", "floor_seconds", labels.seconds_cell),
    _shown("DRAM GB/s", "dram_bytes_per_second", lambda rate: f"{rate * 1e-9:.0f}"),
    _shown("of its peak", "dram_percent", lambda share: f"{share:.0f}%"),
    Column("bytes", _read),
    _shown("warps active", "occupancy_percent", lambda share: f"{share:.0f}%"),
    _shown("tensor cores", "tensor_percent", lambda share: f"{share:.0f}%"),
)


def tables(records: Sequence[Record]) -> list[Table]:
    """One row for each kernel."""
    measured = [record for record in records if not record["skipped"] and not record["refused"]]
    return [listing(measured, (), COLUMNS, strong=never)] if measured else []


def notes(records: Sequence[Record]) -> list[str]:
    """Why there is nothing, where there is nothing."""
    return [f"skipped: {r['provider']}: {r['skipped']}" for r in records if r["skipped"]]


FAMILY = Family(NAME, "The kernels, by Nsight Compute", itemgetter("op"), tables, notes)


if __name__ == "__main__":
    program()
