"""Record each CUDA kernel's resources: `resources.py --write|--check PTXAS_LOG LIBRARY`.

docs/resources.json holds, for each kernel family and architecture, the number of instances, the
registers, spilled bytes, shared memory, the instances with 16-byte accesses, and the bytes that an
SM's loads have in flight. `--write` records a build. `--check` fails if a build with the recorded
nvcc gives other figures; another nvcc may legitimately differ, so it then reports that nothing was
compared. The record is the limit for later builds (CEILINGS in ptxas.py): `--write` fails if a
kernel takes more, unless `--raise` is given.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from tools.cuda.accesses import Accesses, accesses
from tools.cuda.machine_code import disassemble, functions
from tools.cuda.ptxas import CEILINGS, RESOURCES, Ceiling, Kernel, ceilings, family, parse, readable

REMEDY = "write it with `make docs-table`"

# Of an SM of sm_80, sm_90 and sm_100; and of a block (csrc/cuda/grid.h).
REGISTERS, THREADS = 65536, 2048
BLOCK = 256


class Family(TypedDict):
    """The instances of one kernel on one architecture, together."""

    instances: int
    registers: list[int]  # minimum and maximum
    spilled: int  # bytes stored and loaded, over all instances
    shared: int  # bytes of static shared memory, maximum
    wide_loads: int  # instances that load 16 bytes at once
    wide_stores: int
    under_way: list[float]  # KiB in flight by the loads of an SM's threads, min and max


class Resources(TypedDict):
    """The content of docs/resources.json; `kernels` by family, then by architecture."""

    nvcc: str
    archs: str  # as in TORCH_CUDA_ARCH_LIST, without PTX
    kernels: dict[str, dict[str, Family]]


def collect(log: str, sass: str) -> dict[str, dict[str, Family]]:
    """The kernels of a build, from ptxas's log and the library's machine code."""
    entries = [kernel for kernel in parse(log) if kernel.entry]
    code = functions(sass)
    groups: dict[tuple[str, str], list[tuple[Kernel, Accesses]]] = {}
    for kernel, name in zip(entries, readable([kernel.name for kernel in entries]), strict=True):
        # cuobjdump names sm_90a without the letter.
        one = code.get((re.sub(r"\D+$", "", kernel.arch), kernel.name))
        if one is None:
            raise ValueError(
                f"{kernel.arch} {name}: expected the library to contain every kernel of the log, "
                "but this one is missing; pass the log and the library of the same build"
            )
        groups.setdefault((family(name), kernel.arch), []).append((kernel, accesses(one)))
    kernels: dict[str, dict[str, Family]] = {}
    for (name, arch), group in sorted(groups.items(), key=lambda item: item[0][0]):
        kernels.setdefault(name, {})[arch] = _family(group)
    return kernels


def _family(group: Sequence[tuple[Kernel, Accesses]]) -> Family:
    registers = [kernel.registers or 0 for kernel, _ in group]
    under_way = [
        threads_of_sm(kernel.registers or 0) * moved.in_flight.bytes / 1024
        for kernel, moved in group
    ]
    return {
        "instances": len(group),
        "registers": [min(registers), max(registers)],
        "spilled": sum(kernel.spill_stores + kernel.spill_loads for kernel, _ in group),
        "shared": max(kernel.shared for kernel, _ in group),
        "wide_loads": sum(moved.wide()[0] for _, moved in group),
        "wide_stores": sum(moved.wide()[1] for _, moved in group),
        "under_way": [min(under_way), max(under_way)],
    }


def threads_of_sm(registers: int) -> int:
    """How many threads of a kernel fit on an SM; GPUs allocate registers in units of 8."""
    rounded = registers + -registers % 8
    return min(REGISTERS // (rounded * BLOCK) if rounded else THREADS, THREADS // BLOCK) * BLOCK


def nvcc_version(library: bytes) -> str:
    """The version that ptxas notes in machine code since CUDA 13; "unknown" without such a note."""
    found = set(re.findall(rb"ptxas\0Cuda compilation tools, release [\d.]+, V([\d.]+)", library))
    return found.pop().decode() if len(found) == 1 else "unknown"


def arch_list(kernels: Mapping[str, Mapping[str, Family]]) -> str:
    """The architectures in the form of TORCH_CUDA_ARCH_LIST: "9.0a" for sm_90a."""
    archs = dict.fromkeys(arch for by_arch in kernels.values() for arch in by_arch)
    return ";".join(re.sub(r"^sm_(\d+)(\d)", r"\1.\2", arch) for arch in archs)


def as_text(resources: Resources) -> str:
    """JSON with one line per kernel and architecture."""
    text = json.dumps(resources, indent=2)
    return re.sub(r"\{[^{}]*\}", lambda row: " ".join(row[0].split()), text) + "\n"


def read(path: Path = RESOURCES) -> Resources:
    """The stored record."""
    return json.loads(path.read_text(encoding="utf-8"))


def difference(recorded: str, built: str, name: str) -> str:
    """A unified diff; empty if the texts agree."""
    before, after = (text.splitlines(keepends=True) for text in (recorded, built))
    return "".join(difflib.unified_diff(before, after, f"{name} (recorded)", f"{name} (now)"))


def check(built: Resources, path: Path) -> int:
    """1 if the record and the build differ, with a diff on stderr; otherwise 0."""
    if not path.exists():
        print(f"resources: {path} is missing: {REMEDY}", file=sys.stderr)
        return 1
    recorded = read(path)
    if recorded["nvcc"] != built["nvcc"]:
        print(
            f"!!! {path.name} NOT COMPARED with this build: it was recorded with nvcc "
            f"{recorded['nvcc']}, the build used nvcc {built['nvcc']}"
        )
        return 0
    changes = difference(path.read_text(encoding="utf-8"), as_text(built), path.name)
    if changes:
        print(f"{changes}resources: the build gives other figures: {REMEDY}", file=sys.stderr)
    else:
        print(f"{path.name} matches this build with nvcc {built['nvcc']}")
    return 1 if changes else 0


def raised(built: Resources, allowed: Mapping[str, Ceiling]) -> list[str]:
    """The kernels that exceed their ceilings (ptxas.py)."""
    return [
        name
        for name, taken in ceilings(built["kernels"]).items()
        if (most := allowed.get(name))
        and (taken.registers > most.registers or taken.shared > most.shared)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write the record from this build")
    action.add_argument("--check", action="store_true", help="fail if this build needs more")
    parser.add_argument("--raise", action="store_true", dest="may_raise", help="allow more to any")
    parser.add_argument("log", type=Path, help="ptxas.log of the build")
    parser.add_argument("library", type=Path, help="librevdeq_cuda.so of the same build")
    chosen = parser.parse_args(arguments)
    for path in (chosen.log, chosen.library):
        if not path.exists():
            parser.error(f"expected the output of a build with nvcc, got no {path}: `make build`")
    kernels = collect(chosen.log.read_text(), disassemble(str(chosen.library)))
    built: Resources = {
        "nvcc": nvcc_version(chosen.library.read_bytes()),
        "archs": arch_list(kernels),
        "kernels": kernels,
    }
    if chosen.check:
        return check(built, RESOURCES)
    if (more := raised(built, CEILINGS)) and not chosen.may_raise:
        remedy = "find out why, or `make docs-table ARGS=--raise`"
        print(f"resources: above their ceilings: {', '.join(more)}; {remedy}", file=sys.stderr)
        return 1
    RESOURCES.write_text(as_text(built), encoding="utf-8")
    print(f"written: {RESOURCES.name}, of nvcc {built['nvcc']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
