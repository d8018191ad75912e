"""Check ptxas's report on the CUDA kernels: no spills, stack frames or missing kernels.

Also fails if a kernel takes more registers or shared memory than CEILINGS allows its family, as
recorded in docs/resources.json.
Usage: ptxas.py PTXAS_LOG [ARCH ...], where each ARCH ("sm_90a") must have every kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ceiling:
    """The maximum registers per thread and bytes of static shared memory of an instance."""

    registers: int
    shared: int = 0


RESOURCES = Path(__file__).parents[2] / "docs" / "resources.json"
PLACE = "docs/resources.json, which `make docs-table` writes"


def ceilings(kernels: Mapping[str, Any]) -> dict[str, Ceiling]:
    """The maximum of each family in docs/resources.json, over all instances and architectures.

    Registers are rounded up to a multiple of 8, because GPUs allocate them in units of 8.
    """
    found = {}
    for name, by_arch in kernels.items():
        registers = max(row["registers"][1] for row in by_arch.values())
        shared = max(row["shared"] for row in by_arch.values())
        found[name] = Ceiling(registers + -registers % 8, shared)
    return found


RECORDED = json.loads(RESOURCES.read_text(encoding="utf-8")) if RESOURCES.exists() else {}
CEILINGS = ceilings(RECORDED.get("kernels", {}))
EXPECTED_ARCHS = ["sm_80", "sm_90a", "sm_100"]
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
FUNCTION = re.compile(r"Function properties for (\S+)")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Kernel:
    """ptxas's report on one kernel, or on a device function that was not inlined."""

    name: str
    arch: str
    entry: bool
    registers: int | None = None
    shared: int = 0
    stack: int | None = None
    spill_stores: int = 0
    spill_loads: int = 0

    def __str__(self) -> str:
        registers = "?" if self.registers is None else str(self.registers)
        local = f"+{self.stack}B" if self.stack else ""
        return registers + local + (f" s{self.shared}B" if self.shared else "")

    def problem(self) -> str | None:
        """Why this kernel fails the check; None if it passes."""
        if self.stack is None or (self.entry and self.registers is None):
            return "report incomplete"
        if self.spill_stores or self.spill_loads:
            return f"spills registers, {self.spill_stores} bytes stored, {self.spill_loads} loaded"
        return "uses a stack frame" if self.stack else None


def parse(log: str) -> list[Kernel]:
    """The functions in a log of `nvcc -Xptxas=-v`, in order."""
    kernels: list[Kernel] = []
    arch = "?"
    for line in log.splitlines():
        if found := ENTRY.search(line):
            arch = found[2]
            kernels.append(Kernel(found[1], arch, entry=True))
        elif found := FUNCTION.search(line):
            if not kernels or kernels[-1].name != found[1] or kernels[-1].stack is not None:
                kernels.append(Kernel(found[1], arch, entry=False))
        elif found := STACK.search(line):
            kernel = kernels[-1]
            kernel.stack, kernel.spill_stores, kernel.spill_loads = map(int, found.groups())
        elif found := USED.search(line):
            kernel = next(kernel for kernel in reversed(kernels) if kernel.entry)
            kernel.registers = int(found[1])
            kernel.shared = int(shared[1]) if (shared := SHARED.search(line)) else 0
    return kernels


def problems(kernels: list[Kernel], archs: list[str]) -> list[str]:
    """The problems of the report as a whole and of each kernel."""
    entries = {(kernel.arch, kernel.name) for kernel in kernels if kernel.entry}
    names = {name for _, name in entries}
    found = [] if names else ["no kernel was found"]
    for arch in archs:
        missing = sorted(name for name in names if (arch, name) not in entries)
        found += [f"{arch} {name}: missing" for name in missing]
    told = [(kernel, kernel.problem()) for kernel in kernels]
    return found + [f"{kernel.arch} {kernel.name}: {what}" for kernel, what in told if what]


def family(name: str) -> str:
    """The kernel family of an instance with a readable name, such as "half_step_kernel"."""
    return name.split("<", maxsplit=1)[0].removeprefix("revdeq::cuda::")


def above_ceilings(kernels: list[Kernel], allowed: Mapping[str, Ceiling]) -> list[str]:
    """Families above their ceiling (by worst instance) or without one, and unused ceilings.

    The kernels have readable names.
    """
    families: dict[str, dict[str, list[Kernel]]] = {}
    for kernel in kernels:
        if kernel.entry:
            by_arch = families.setdefault(family(kernel.name), {})
            by_arch.setdefault(kernel.arch, []).append(kernel)
    found = []
    for name, by_arch in families.items():
        if name not in allowed:
            found.append(f"{name}: expected it in {PLACE}")
            continue
        for instances in by_arch.values():
            found += _above_ceiling(allowed[name], instances)
    if families:
        stale = [name for name in allowed if name not in families]
        found += [f"{name}: no such kernel in the log, but in {PLACE}" for name in stale]
    return found


def _above_ceiling(ceiling: Ceiling, instances: list[Kernel]) -> list[str]:
    most = max(instances, key=lambda kernel: kernel.registers or 0)
    greatest = max(instances, key=lambda kernel: kernel.shared)
    rows = [
        (most, most.registers or 0, ceiling.registers, "registers"),
        (greatest, greatest.shared, ceiling.shared, "bytes of static shared memory"),
    ]
    return [
        f"{kernel.arch} {kernel.name}: expected at most {limit} {what}, got {got}; "
        "find out why, or raise the limit: `make docs-table ARGS=--raise`"
        for kernel, got, limit, what in rows
        if got > limit
    ]


def readable(names: list[str]) -> list[str]:
    """The names demangled, without parameter lists and anonymous namespaces."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    text = text.replace("(anonymous namespace)::", "")
    text = re.sub(r"\(\w+::(\w+)\)", r"\1 ", text)  # the type of an enum value
    return [re.sub(r"^void |\(.*", "", line) for line in text.splitlines()]


def table(kernels: list[Kernel]) -> str:
    """One row per kernel: for each architecture registers + stack, and s + shared memory."""
    archs = list(dict.fromkeys(kernel.arch for kernel in kernels))
    names = list(dict.fromkeys(kernel.name for kernel in kernels))
    cells = {(kernel.name, kernel.arch): str(kernel) for kernel in kernels}
    width = max(map(len, [*cells.values(), *archs]), default=0)
    lines = ["  ".join([*(arch.rjust(width) for arch in archs), "kernel"])]
    for name in names:
        row = [cells.get((name, arch), "-").rjust(width) for arch in archs]
        lines.append("  ".join([*row, name]))
    return "\n".join(lines)


def main(log: str, archs: list[str], allowed: Mapping[str, Ceiling] = CEILINGS) -> int:
    kernels = parse(Path(log).read_text())
    for kernel, name in zip(kernels, readable([kernel.name for kernel in kernels]), strict=True):
        kernel.name = name
    print(table(kernels))
    found = problems(kernels, archs) + above_ceilings(kernels, allowed)
    for problem in found:
        print(f"ptxas: {problem}", file=sys.stderr)
    entries = sum(kernel.entry for kernel in kernels)
    print(f"{entries} kernels on {', '.join(archs)}: {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:] or EXPECTED_ARCHS))
