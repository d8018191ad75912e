"""Runs the cases of the ops: gate, warm-up, race, records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from bench.core import gate, providers, timing
from bench.core.case import Case, Plan, Provider, Tensors
from bench.core.session import Record


def with_bound(plan: Plan, case: Case) -> Case:
    """Add the tensors and the provider of `copy_`, and drop providers that were not asked for."""
    kept = tuple(provider for provider in case.providers if plan.wants_provider(provider))
    if case.bytes is None:
        return replace(case, providers=kept)
    bytes_moved, elements, make = case.bytes, case.elements, case.make

    def make_with_copy(count: int) -> Tensors:
        copied = bytes_moved * count // elements
        return make(count) | providers.copy_tensors(copied, plan.device)

    return replace(case, make=make_with_copy, providers=(providers.COPY_BOUND, *kept))


def thread_rows(plan: Plan, case: Case) -> tuple[int | None, ...]:
    """Thread counts this case runs with."""
    return plan.threads if case.headline else plan.threads[:1]


def sample_count(plan: Plan, cases: list[tuple[float, Case]]) -> int:
    """Samples that a run takes if no provider is refused, for the progress bar."""
    return sum(
        plan.rounds(case) * len(case.providers) * len(thread_rows(plan, case)) for _, case in cases
    )


def tensor_sets(plan: Plan, case: Case) -> list[Tensors]:
    """As many equal sets as it takes to leave the caches cold when calls go round them in turn."""
    first = case.make(case.elements)
    case.settle(first)
    count = 1 if case.bytes is None else max(1, math.ceil(plan.cold_bytes / case.bytes))
    copies = [{name: tensor.clone() for name, tensor in first.items()} for _ in range(count - 1)]
    return [first, *copies]


def run_case(
    plan: Plan, size_mb: float, case: Case, facts: Record, on_sample: Callable[[], None]
) -> Iterator[Record]:
    """One record per thread count and provider; a refused provider has its reason and no time."""
    torch.compiler.reset()
    admitted: list[Provider] = []
    rows, rounds = thread_rows(plan, case), plan.rounds(case)
    for provider in case.providers:
        reason = gate.refusal(case, provider)
        if reason is None:
            admitted.append(provider)
        else:
            for _ in range(rounds * len(rows)):
                on_sample()
            refused = {"refused": reason, "threads": rows[0]}
            yield _record(plan, size_mb, case, provider, facts) | refused
    sets = tensor_sets(plan, case)
    contenders = [
        timing.Contender(provider, [provider.bind(tensors) for tensors in sets])
        for provider in admitted
    ]
    clock = timing.CLOCKS[plan.device.type]
    for threads in rows:
        if threads is not None:
            torch.set_num_threads(threads)
        timing.race(
            contenders, clock, rounds=rounds, minimum=plan.sample_seconds, on_sample=on_sample
        )
        for contender in contenders:
            if contender.failure is not None:
                refused = {"refused": contender.failure, "threads": threads}
                yield _record(plan, size_mb, case, contender.provider, facts) | refused
        contenders = [contender for contender in contenders if contender.failure is None]
        for record in _timed_records(plan, size_mb, case, contenders, facts):
            yield record | {"threads": threads, "sets": len(sets)}


def _record(plan: Plan, size_mb: float, case: Case, provider: Provider, facts: Record) -> Record:
    return {
        "benchmark": case.benchmark,
        "op": case.op,
        "variant": case.variant,
        "provider": provider.name,
        "kind": provider.kind,
        "dtypes": case.dtype_names,
        "beta": case.beta,
        "size_mb": size_mb if case.bytes is not None else None,
        "elements": case.elements,
        "bytes": case.bytes,
        "threads": None,
        "sample_seconds": plan.sample_seconds,
        "refused": None,
        **facts,
    }


def _timed_records(
    plan: Plan,
    size_mb: float,
    case: Case,
    contenders: list[timing.Contender],
    facts: Record,
) -> Iterator[Record]:
    medians = {c.provider.name: timing.quantile(c.samples, 0.5) for c in contenders}
    kinds = {c.provider.name: c.provider.kind for c in contenders}
    bound = next((medians[name] for name, kind in kinds.items() if kind == "bound"), None)
    rivals = [medians[name] for name, kind in kinds.items() if kind == "alternative"]
    for contender in contenders:
        seconds = medians[contender.provider.name]
        yield _record(plan, size_mb, case, contender.provider, facts) | {
            "samples": len(contender.samples),
            "calls_per_sample": contender.count,
            **timing.quantiles(contender.samples),
            "gb_per_second": None if case.bytes is None else case.bytes / seconds * 1e-9,
            "share_of_bound": None if bound is None else bound / seconds,
            "ratio_to_best_alternative": seconds / min(rivals) if rivals else None,
        }
