"""What the report begins with: this project over its baselines, in one sentence for each family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from bench.cell.columns import MEMORY
from bench.core import labels
from bench.core.session import Record
from bench.core.table import is_ours

OWN, LOOP = "reversible exact", "lerp loop"


def sentences(records: Sequence[Record]) -> list[tuple[str, str]]:
    """A subject and what is found of it; only what these records hold."""
    measured = [r for r in records if not r["refused"] and not r.get("skipped")]
    found = ((name, of(measured)) for name, of in SENTENCES)
    return [(name, text) for name, text in found if text]


def _ops(records: Sequence[Record]) -> str:
    """Of our fastest backend, in the median of the cases."""
    cases = labels.groups(r for r in records if "elements" in r and "sets" in r)
    eager = _ratios(cases, lambda name: not name.startswith(("compile", "copy_")))
    compiled = _ratios(cases, lambda name: name.startswith("compile"))
    return _over(eager, compiled, "eager PyTorch at its fastest", "case")


def _ratios(cases: Iterable[Sequence[Record]], wanted: Callable[[str], bool]) -> list[float]:
    """Our time over that of the fastest baseline with such a name, case by case."""
    found = []
    for case in cases:
        own = [r["p50_seconds"] for r in case if is_ours(r)]
        others = [
            r["p50_seconds"] for r in case if r["kind"] == "alternative" and wanted(r["provider"])
        ]
        if own and others:
            found.append(min(own) / min(others))
    return found


def _over(eager: Sequence[float], compiled: Sequence[float], name: str, what: str) -> str:
    parts = []
    if eager:
        parts.append(f"{median(eager):.2f}x the time of {name}")
    if compiled:
        parts.append(f"{median(compiled):.2f}x that of torch.compile")
    count = max(len(eager), len(compiled))
    of = f" (medians of {count} {what}s)" if count > 1 else f" (1 {what})"
    return " and ".join(parts) + of if parts else ""


def _cell(records: Sequence[Record]) -> str:
    timed = [r for r in records if r["benchmark"] == "cell" and r["part"] != MEMORY]
    cases: dict[object, list[Record]] = {}
    for record in timed:
        case = [str(record[name]) for name in ("part", "dtypes", "features", "rows", "threads")]
        cases.setdefault(tuple(case), []).append(record)
    eager = _ratios(cases.values(), lambda name: name == "eager loop")
    compiled = _ratios(cases.values(), lambda name: name == "compiled loop")
    return _over(eager, compiled, "the eager loop", "case")


def _step(records: Sequence[Record]) -> str:
    """Of the deepest training step, in time, memory and gradient error."""
    steps = [r for r in records if r["benchmark"] == "solver" and r["part"] == "cost"]
    pairs = [
        (own, loop)
        for own in steps
        for loop in steps
        if (own["provider"], loop["provider"]) == (OWN, LOOP)
        and all(own[name] == loop[name] for name in ("op", "beta", "steps", "device_name"))
    ]
    if not pairs:
        return ""
    own, loop = max(pairs, key=lambda pair: pair[0]["steps"])
    return (
        f"{own['p50_seconds'] / loop['p50_seconds']:.2f}x the time of a loop that stores its "
        f"activations, and {labels.size_label(own['peak_bytes'])} of memory instead of "
        f"{labels.size_label(loop['peak_bytes'])} ({own['op']}, N = {own['steps']}; relative "
        f"gradient error {own['gradient_error']:.0e}, of the loop {loop['gradient_error']:.0e})"
    )


SENTENCES: tuple[tuple[str, Callable[[Sequence[Record]], str]], ...] = (
    ("The ops", _ops),
    ("The equilibrium cell", _cell),
    ("A training step", _step),
)
