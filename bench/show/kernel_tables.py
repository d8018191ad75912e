"""The tables of docs/kernels.md: what every op computes and moves, and what became of its kernels.

They are made of what the ops say of themselves (TABLE below), of the cases of the benchmarks (types
and bytes), of docs/resources.json (see tools/cuda/resources.py) and of the figures in
bench/results/. None of that needs nvcc or a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from bench.core import labels, stored
from bench.core.case import Case, Plan
from bench.core.session import Record
from bench.core.table import PROVIDER, listing, markdown, never
from bench.ops import run as ops_run
from bench.ops.columns import COPY, OP, PLACE, RATE, TIME, TYPES, missing
from revdeq_kernels import digit_bytes
from revdeq_kernels.core.op import OPS
from tools.cuda.ptxas import CEILINGS
from tools.cuda.resources import Family, Resources
from tools.cuda.resources import read as read_resources
from tools.cuda.sass import NARROW

WHERE = "its Op in revdeq_kernels/ops/"


@dataclass(frozen=True)
class Row:
    """One op: its equation, the bytes it moves per element, and its CUDA kernels.

    `bytes` is a sum of terms such as `2 state`: a role in the benchmark's types stands for the
    size of its elements, `digits` for the bytes that one digit takes. `ops` holds it to the bytes
    that the benchmark counts.
    """

    equation: str
    bytes: str
    kernels: tuple[str, ...]


TABLE = {
    op.label: Row(op.equation, op.moves, op.kernels) for op in OPS.values() if not op.overload_name
}

COMPILED = """\
From [resources.json](resources.json): nvcc {nvcc}, `TORCH_CUDA_ARCH_LIST="{archs}"`.
"""
WHOLE = "Every instance moves the vector of a tensor in one access, or 16 bytes at once, except in"
NONE = {"cpu": "There are no CPU figures yet.", "cuda": "There are no GPU figures yet."}
# By device: the providers whose figures are shown.
PROVIDERS = {"cpu": ("revdeq cpu",), "cuda": ("revdeq cuda", "revdeq triton")}
SHOWN = (OP, TYPES, PLACE, PROVIDER, TIME, RATE, COPY)


# ---- what the ops are ------------------------------------------------------------------------


def shown_cases() -> list[Case]:
    """The headline cases of the benchmarks; of an op that has none, all that move bytes."""
    plan = Plan(torch.device("cpu"), sizes_mb=(64.0,), threads=(1,))
    cases = [case for _, case in ops_run.planned_cases(plan) if case.bytes is not None]
    with_headline = {case.op for case in cases if case.headline}
    return [case for case in cases if case.headline or case.op not in with_headline]


def bytes_per_element(op: str, formula: str, case: Case) -> float:
    """What the benchmark counts; ValueError where the formula gives another number."""
    sizes = {role: float(dtype.itemsize) for role, dtype in case.dtypes.items()}
    if "digits" in formula and case.beta is not None:
        sizes["digits"] = digit_bytes(case.elements, case.beta) / case.elements
    total = 0.0
    for term in formula.split(" + "):
        *count, role = term.split()
        total += float(count[0] if count else 1) * sizes.get(role, 0.0)
    counted = (case.bytes or 0) / case.elements
    # Not to the last digit: a flag or the betas of the channels may come on top.
    if not math.isclose(total, counted, rel_tol=1e-3):
        raise ValueError(
            f"{op}: expected bytes per element that give the {counted:g} which bench/ops/"
            f"{case.benchmark}.py counts for {case.dtype_names}, got {formula!r}, {total:g}; "
            f"correct {WHERE} or the benchmark"
        )
    return counted


def check_names(rows: Mapping[str, Row], kernels: Collection[str]) -> None:
    """ValueError for an op without an equation, and for a kernel that is missing on one side."""
    complaints = [
        f"op {op}: expected an equation, got none; give {WHERE} one"
        for op, row in rows.items()
        if not row.equation
    ]
    named = {kernel for row in rows.values() for kernel in row.kernels}
    complaints += [
        f"kernel {kernel}: expected an op that names it, got none; add it to {WHERE}"
        for kernel in kernels
        if kernel not in named
    ]
    complaints += [
        f"kernel {kernel}: expected it in docs/resources.json, got nothing of it; `make docs-table`"
        for kernel in sorted(named)
        if kernel not in kernels
    ]
    if complaints:
        raise ValueError("\n".join(complaints))


def ops_table(rows: Mapping[str, Row], cases: Sequence[Case]) -> str:
    """Op, equation, bytes and kernels."""
    lines = []
    for op, row in rows.items():
        numbers = {
            f"{bytes_per_element(op, row.bytes, case):.5g} ({types_of(case)})": None
            for case in cases
            if case.op == op
        }
        if not numbers:
            raise ValueError(f"{op}: expected a case in bench/ops/, got none; add one")
        kernels = ", ".join(f"`{kernel}`" for kernel in row.kernels)
        lines.append((f"`{op}`", f"`{row.equation}`", row.bytes, "<br>".join(numbers), kernels))
    columns = ("op", "equation", "bytes per element", "for the types measured", "CUDA kernel")
    return markdown(columns, lines, left=5)


def types_of(case: Case) -> str:
    """The types, and beta where digits depend on it."""
    facts = {"benchmark": case.benchmark, "op": "", "beta": case.beta, "dtypes": case.dtype_names}
    return ", ".join(filter(None, (labels.types_label(facts), labels.op_label(facts).strip())))


# ---- what the compiler made of them ----------------------------------------------------------


def kernels_table(resources: Resources) -> str:
    """Instances, registers, spills, shared memory and accesses of each kernel."""
    kernels = resources["kernels"]
    archs = list(dict.fromkeys(arch for by_arch in kernels.values() for arch in by_arch))
    lines = []
    for name, by_arch in kernels.items():
        registers = [
            "-".join(map(str, by_arch[a]["registers"])) if a in by_arch else "" for a in archs
        ]
        lines.append(
            (
                f"`{name}`",
                of_archs(by_arch, lambda one: str(one["instances"])),
                *registers,
                str(CEILINGS[name].registers) if name in CEILINGS else "none",
                of_archs(by_arch, lambda one: str(one["spilled"])),
                of_archs(by_arch, lambda one: str(one["shared"])),
                of_archs(by_arch, lambda one: f"{one['wide_loads'] / one['instances']:.0%}"),
                of_archs(by_arch, lambda one: f"{one['wide_stores'] / one['instances']:.0%}"),
                f"{min(one['under_way'][0] for one in by_arch.values()):.0f}-"
                f"{max(one['under_way'][1] for one in by_arch.values()):.0f}",
            )
        )
    columns = ["kernel", "instances", *(f"registers, {arch}" for arch in archs), "ceiling"]
    columns += ["bytes spilled", "bytes shared", "16-byte loads", "16-byte stores"]
    columns += ["KiB in flight"]
    narrow = [f"- `{name}`: {NARROW[name]}." for name in kernels if name in NARROW]
    if narrow:
        narrow = ["\n\n" + WHOLE, "", *narrow]
    return markdown(columns, lines, left=1) + "\n".join(narrow)


def of_archs(by_arch: Mapping[str, Family], show: Callable[[Family], str]) -> str:
    """What all architectures have in common, or one value for each."""
    values = [show(one) for one in by_arch.values()]
    return values[0] if len(set(values)) == 1 else " / ".join(values)


# ---- how fast they are -----------------------------------------------------------------------


def figures(records: Iterable[Record], cases: Iterable[Case], device: str) -> str:
    """The project's own rows of the shown cases, a table for each machine; "" without any."""
    known = [(case.benchmark, case.op, case.dtype_names, case.beta) for case in cases]
    machines: dict[str, list[Record]] = {}
    for record in records:
        key = (record["benchmark"], record["op"], record["dtypes"], record["beta"])
        ours = record["device"] == device and record["provider"] in PROVIDERS[device]
        if ours and key in known:
            machines.setdefault(labels.heading(record), []).append(record)
    tables = {m: listing(r, (), SHOWN, missing=missing, strong=never) for m, r in machines.items()}
    return "\n\n".join(f"{machine}\n\n{table.markdown}" for machine, table in tables.items())


# ---- the tables of the document --------------------------------------------------------------


def ops(
    resources: Resources | None = None,
    rows: Mapping[str, Row] = TABLE,
) -> str:
    """What they compute and move; ValueError where ops, benchmarks and build disagree."""
    check_names(rows, (resources or read_resources())["kernels"])
    return ops_table(rows, shown_cases())


def compiled() -> str:
    """What the compiler made of them."""
    resources = read_resources()
    head = COMPILED.format(nvcc=resources["nvcc"], archs=resources["archs"])
    return f"{head}\n{kernels_table(resources)}"


def shares(device: str, records: Sequence[Record] | None = None) -> str:
    """How near they come to `copy_` on such a device."""
    found = figures(stored.every("ops") if records is None else records, shown_cases(), device)
    return found or NONE[device]
