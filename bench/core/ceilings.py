"""Speed limits of the device: bytes per second of `copy_`, operations per second of arithmetic.

The latter of a large matmul, and on a CPU of multiply-adds in registers, the float32 peak.

They are measured in the run that is compared with them, as the fastest sample, because other work
can only make a ceiling look lower.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch

from bench.core import fma, labels, machine, providers, timing
from bench.core.case import Call
from bench.core.session import Bar, Record, Session
from bench.core.table import PROVIDER, Column, Family, listing

NAME = "ceilings"
COPY = "copy_"
FMA = "fma float32"
DTYPES = (torch.float32, torch.bfloat16)
# Bytes that the copy moves, and the side of the matrices.
GPU_WORK, CPU_WORK, QUICK_WORK = (2**30, 8192), (2**27, 1024), (2**24, 256)


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second, and operations a second: multiplying and adding are two.

    `matmul` by dtype; `fma` None on a GPU, and where there is no compiler to measure it.
    """

    copy: float
    matmul: dict[str, float]
    fma: float | None = None


def run(session: Session, bar: Bar, threads: int | None) -> Iterator[Record]:
    """One line for the copy, one for the matmul in each dtype, and on a CPU one for `fma`."""
    if threads is not None:
        torch.set_num_threads(threads)
    device = session.device
    moved, side = GPU_WORK if device.type == "cuda" else CPU_WORK
    if session.tier == "quick":
        moved, side = QUICK_WORK
    elif device.type == "cpu":
        moved = max(moved, 2 * (machine.cache_bytes(device) or 0))
    bar.total(1 + len(DTYPES))
    copied = providers.copy_tensors(moved, device)
    record = partial(_record, session, threads)
    yield record(COPY, providers.bind_copy(copied), size=moved)
    bar.advance(1)
    for dtype in DTYPES:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        yield record(_matmul(dtype), partial(torch.mm, a, b), operations=2 * side**3)
        bar.advance(1)
    loop = None if threads is None else fma.loop()
    if threads is not None and loop is not None:
        with ThreadPoolExecutor(threads) as pool:
            call = fma.on_threads(loop, pool, threads)
            yield record(FMA, call, operations=call())


def _matmul(dtype: torch.dtype) -> str:
    return f"matmul {str(dtype).removeprefix('torch.')}"


def _record(
    session: Session,
    threads: int | None,
    name: str,
    call: Call,
    *,
    size: int | None = None,
    operations: int = 0,
) -> Record:
    contender = timing.alone(name, "bound", call)
    timing.race(
        [contender],
        timing.CLOCKS[session.device.type],
        rounds=session.chosen.samples or 5,
        minimum=session.sample_seconds,
    )
    about: Record = {
        "benchmark": NAME,
        "op": name.split(maxsplit=1)[0],
        "provider": name,
        "kind": "bound",
        "bytes": size,
        "operations": operations or None,
        "threads": threads,
        "refused": contender.failure,
    }
    if contender.failure is not None:
        return about
    times = timing.quantiles(contender.samples)
    seconds = min(contender.samples)
    return about | {
        "samples": len(contender.samples),
        **times,
        "fastest_seconds": seconds,
        "gb_per_second": size and size / seconds * 1e-9,
        "tflop_per_second": operations / seconds * 1e-12 if operations else None,
    }


def of(session: Session, threads: int | None = None) -> Ceilings:
    """Those of this run with so many threads (its own), measured where somebody asks first."""
    by_name = {record["provider"]: record for record in _lines(session, threads)}
    rates = {
        name: record["tflop_per_second"] * 1e12
        for name, record in by_name.items()
        if name != COPY and not record["refused"]
    }
    peak = rates.pop(FMA, None)
    matmul = {name.removeprefix("matmul "): rate for name, rate in rates.items()}
    return Ceilings(by_name[COPY]["gb_per_second"] * 1e9, matmul, peak)


def _lines(session: Session, threads: int | None = None) -> list[Record]:
    threads = threads or session.threads
    if threads not in session.ceilings:
        session.ceilings[threads] = list(run(session, Bar(), threads))
    return session.ceilings[threads]


def rows(session: Session, bar: Bar) -> Iterator[Record]:
    """The same lines, as a benchmark of their own."""
    del bar
    yield from _lines(session)


def _three_digits(name: str) -> Column:
    head = {"gb_per_second": "GB/s", "tflop_per_second": "TFLOP/s"}[name]
    return Column(head, lambda record: "" if record[name] is None else f"{record[name]:.3g}")


COLUMNS = (
    replace(PROVIDER, head="ceiling"),
    Column("fastest", lambda record: labels.seconds_cell(record["fastest_seconds"])),
    Column("p20 .. p80", labels.spread_cell),
    _three_digits("gb_per_second"),
    _three_digits("tflop_per_second"),
)
FAMILY = Family(
    NAME,
    "The ceilings",
    lambda record: record["op"],
    lambda records: [
        listing(records, (), COLUMNS, missing=lambda r: "refused" if r["refused"] else "")
    ],
)
