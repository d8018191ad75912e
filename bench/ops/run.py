"""Every op of `revdeq_kernels` compared with its PyTorch baselines and with `copy_`.

The other files here hold the cases, one for each group of ops; `core/harness.py` runs them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from functools import partial
from types import ModuleType

import torch

import bench.ops
from bench.core import harness, machine
from bench.core.case import MEBIBYTE, Case, Plan
from bench.core.session import Bar, Record, Session

NAME = "ops"
CPU_SIZES_MB = (64.0,)
GPU_SIZES_MB = (256.0, 64.0, 1024.0)
QUICK_SIZES_MB = (8.0,)
# A pass on an exact state holds most: the state, its float64 twin, f, cast, grad, vjp, seed, both
# ends of the copy and what the alternatives allocate, about sixteen states.
GPU_STATES_HELD = 20


def plan_of(session: Session, only: Sequence[str]) -> Plan:
    """What the run measures. `only` holds parts of the names of cases; none stands for all."""
    device, chosen = session.device, session.chosen
    quick = session.tier == "quick"
    cache = machine.cache_bytes(device) or 32 * MEBIBYTE
    # Calls go round sets of tensors that together exceed the cache; a GPU has room for more.
    cold_bytes = 0 if quick else cache * (8 if device.type == "cuda" else 2)
    return Plan(
        device=device,
        sizes_mb=tuple(chosen.sizes_mb or sizes(session)),
        threads=thread_counts(session),
        samples=session.samples(5),
        side_samples=chosen.samples or 3,
        sample_seconds=session.sample_seconds,
        cold_bytes=cold_bytes,
        only=tuple(only),
        providers=tuple(chosen.providers),
        reference=chosen.reference,
        headline_only=quick and not only,
    )


def sizes(session: Session) -> tuple[float, ...]:
    """Sizes of a state beyond the cache that fit the device; the first one runs every case."""
    if session.tier == "quick":
        return QUICK_SIZES_MB
    if session.device.type == "cpu":
        return CPU_SIZES_MB
    memory = torch.cuda.get_device_properties(session.device).total_memory
    fitting = [size for size in GPU_SIZES_MB if size * MEBIBYTE * GPU_STATES_HELD <= memory]
    return tuple(fitting if session.tier == "full" else fitting[:1])


def thread_counts(session: Session) -> tuple[int | None, ...]:
    """All usable cores, in full two and one as well; None on a GPU, where threads do nothing."""
    if session.device.type == "cuda":
        return (None,)
    if session.chosen.threads:
        return tuple(session.chosen.threads)
    cores = machine.usable_cores()
    counts = {cores, min(2, cores), 1} if session.tier == "full" else {cores}
    return tuple(sorted(counts, reverse=True))


def benchmarks() -> list[ModuleType]:
    """The modules of `bench/ops/` that define `cases`."""
    package = bench.ops
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return [module for module in modules if hasattr(module, "cases")]


def planned_cases(plan: Plan) -> list[tuple[float, Case]]:
    """Cases with their sizes in MiB: every case at the first size, headlines at the others."""
    return [
        (size_mb, harness.with_bound(plan, case))
        for index, size_mb in enumerate(plan.sizes_mb)
        for module in benchmarks()
        for case in module.cases(plan, size_mb)
        if plan.wants(case) and (case.headline or index == 0)
    ]


def names() -> list[str]:
    """Every `benchmark.op`, each once, for `--only`."""
    every = Plan(torch.device("cpu"), sizes_mb=(QUICK_SIZES_MB[0],), threads=(1,))
    return list(dict.fromkeys(case.name for _, case in planned_cases(every)))


def run(session: Session, bar: Bar, only: Sequence[str]) -> Iterator[Record]:
    """The lines, case by case."""
    plan = plan_of(session, only)
    cases = planned_cases(plan)
    bar.total(harness.sample_count(plan, cases))
    for size_mb, case in cases:
        bar.at(case.op)
        yield from harness.run_case(plan, size_mb, case, {}, partial(bar.advance, 1))
