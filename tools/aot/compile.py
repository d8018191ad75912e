"""Compile every Triton kernel ahead of time; fails on errors, spills, or if there is no kernel.

`python -m tools.aot.compile [ROOT] [--only WORDS] [--record]`: `--only` selects kernels whose
labels contain the words; `--record` writes the resources of the equilibrium cell's kernels.

signatures.py lists the kernels. They are loaded without the rest of the package, which imports
torch, so an environment with only triton is enough.

cell_code.py and cell_record.py perform further checks on the equilibrium cell's kernels.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.experimental.gluon._runtime import GluonASTSource

from tools.aot import cell_code, cell_record

ROOT = Path(__file__).parents[2]
TARGETS = [GPUTarget("cuda", arch, 32) for arch in (80, 90, 100, 120)]
TARGETS += [GPUTarget("hip", "gfx942", 64)]
# Bytes per thread. ptxas spills 8 bytes in some kernels for float64, depending on its version; a
# kernel that does not fit spills hundreds. The equilibrium cell's kernels fill the registers: with
# the Triton of their record they must not spill, but another version allocates differently (3.9:
# 88 bytes in one kernel, for sm_90 with gelu and a float32 W).
SPILL_LIMIT = 32
CELL_SPILL_LIMIT = 128
ARCHITECTURES: dict[str, tuple[int, ...]] = {}  # of signatures that are not for all architectures
PROGRAMS: dict[str, int] = {}  # of cells, by label: programs per multiprocessor in a launch
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Compiled:
    """Registers and spilled bytes of one kernel on one target, or the compiler's error.

    `evaluated` (from ``cell_code.evaluations``) and `taken` are only set for the equilibrium cell.
    """

    registers: int = 0
    spilled: int = 0
    error: str = ""
    spill_limit: int = SPILL_LIMIT
    evaluated: tuple[str, ...] = ()
    taken: cell_record.Taken | None = None

    def __str__(self) -> str:
        if self.error:
            return "error"
        return f"{self.registers}+{self.spilled}B" if self.spilled else str(self.registers)

    def problem(self) -> str:
        """Why this fails the check; empty if it passes."""
        return self.error or (
            f"spills {self.spilled} bytes per thread" if self.spilled > self.spill_limit else ""
        )


class Device:
    """The driver interface that Triton needs while compiling: the target."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        """Used by ``compiled_for_nvidia`` in device/half_step.py."""
        return self.target


def load_signatures(root: Path) -> list[tuple[str, Any, dict[str, Any], dict[str, Any]]]:
    """The signatures, imported without the package's `__init__`, which imports torch."""
    package = ModuleType("revdeq_kernels")
    package.__path__ = [str(root / "revdeq_kernels")]
    sys.modules["revdeq_kernels"] = package
    listed = importlib.import_module("tools.aot.signatures")
    ARCHITECTURES.update(listed.ARCHITECTURES)
    PROGRAMS.update(listed.PROGRAMS)
    return list(listed.signatures())


def nvidia_resources(asm: dict[str, Any]) -> Compiled:
    """Resources according to cuobjdump; spills are on the stack or in local memory.

    ptxas also leaves stack frames to which nothing is written.
    """
    report = _cuobjdump(asm["cubin"], "-res-usage")
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    if not found:
        return Compiled(error=f"cuobjdump -res-usage names no kernel:\n{report}")
    registers, stack, local = map(max, zip(*(map(int, row) for row in found), strict=True))
    frame = stack + local
    used = frame > 0 and re.search(r"\b(LDL|STL)\b", disassembled(asm["cubin"]))
    return Compiled(registers, frame if used else 0)


def amd_resources(asm: dict[str, Any]) -> Compiled:
    """Resources according to the metadata at the end of AMD's assembly.

    Scalar registers are spilled to lanes of vector registers. If spills reach memory, this shows in
    the size of the private segment.
    """
    keys = ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    found = [re.search(rf"\.{key}:\s+(\d+)", asm["amdgcn"]) for key in keys]
    if None in found:
        return Compiled(error="the assembly lacks the counts of registers and spills")
    registers, vector, private = (int(match[1]) for match in found if match)
    return Compiled(registers, max(4 * vector, private))


RESOURCES: dict[str, Callable[[dict[str, Any]], Compiled]] = {
    "cuda": nvidia_resources,
    "hip": amd_resources,
}


def disassembled(cubin: bytes) -> str:
    """The machine code, as shown by cuobjdump."""
    return _cuobjdump(cubin, "-sass")


def _cuobjdump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def as_launched(
    kernel: Any, signature: dict[str, Any], keywords: dict[str, Any], backend: Any
) -> tuple[ASTSource, dict[str, Any]]:
    """The source that a launch with these arguments compiles, and the compiler's options.

    Keywords that are not parameters of the kernel are compiler options. Pointers are assumed to be
    those of torch tensors: 16-byte aligned and, for AMD, to less than 2 GiB.
    """
    names = kernel.arg_names
    constants: dict[tuple[int, ...], Any] = {
        (position,): keywords[name] for position, name in enumerate(names) if name in keywords
    }
    attributes = {}

    def specialise(path: tuple[int, ...], kind: Any) -> Any:
        """The type at `path`: the position of a parameter, then its position in a tuple."""
        if isinstance(kind, tuple):
            found = [specialise((*path, k), element) for k, element in enumerate(kind)]
            return type(kind)(*found) if hasattr(kind, "_fields") else tuple(found)
        if kind is None or kind == "1":
            constants[path] = None if kind is None else 1
            return "constexpr"
        kind, _, divisor = kind.partition(":")
        if divisor or kind.startswith("*"):
            attributes[path] = backend.parse_attr("DS" if kind.startswith("*") else "D")
        return kind

    types = {
        name: "constexpr" if name in keywords else specialise((position,), signature[name])
        for position, name in enumerate(names)
    }
    options = {name: value for name, value in keywords.items() if name not in names}
    source = GluonASTSource if kernel.is_gluon() else ASTSource
    return source(fn=kernel, signature=types, constexprs=constants, attrs=attributes), options


def compile_one(task: tuple[int, GPUTarget]) -> Compiled:
    """Compile kernel number `task[0]` like a launch would."""
    index, target = task
    label, kernel, signature, keywords = SIGNATURES[index]
    try:
        triton.runtime.driver.set_active(cast(Any, Device(target)))
        source, options = as_launched(kernel, signature, keywords, make_backend(target))
        kernel_of_target = triton.compile(source, target=target, options=options)
    except Exception:
        # Any failure is a finding of this check: it is printed in full and fails the run.
        return Compiled(error=traceback.format_exc())
    asm = kernel_of_target.asm
    compiled = RESOURCES[target.backend](asm)
    if " cell " not in label:
        return compiled
    sass = disassembled(asm["cubin"])
    problem = cell_code.problem(label, asm["ttgir"], sass)
    limit = 0 if cell_record.is_of(triton.__version__) else CELL_SPILL_LIMIT
    if compiled.spilled > limit:
        problem = f"spills {compiled.spilled} bytes per thread; a cell may spill {limit}"
    return replace(
        compiled,
        error=problem,
        spill_limit=limit,
        evaluated=tuple(cell_code.evaluations(asm["ttgir"])),
        taken=cell_record.taken(
            label.split()[0],
            sass,
            keywords["CELL"],
            *(keywords["num_warps"], compiled.registers, kernel_of_target.metadata.shared),
            int(target.arch),
        ),
    )


def differing(results: dict[tuple[int, GPUTarget], Compiled]) -> dict[tuple[int, GPUTarget], str]:
    """The cell's backward passes that evaluate f unlike their forward passes, if both exist."""
    evaluated = {
        (SIGNATURES[index][0], target): result.evaluated
        for (index, target), result in results.items()
    }
    return {
        (index, target): "evaluates f with other products than the forward pass"
        for index, target in results
        if " cell back " in (label := SIGNATURES[index][0])
        and (forward := (label.replace(" back ", " forward "), target)) in evaluated
        and evaluated[label, target] != evaluated[forward]
    }


def report(results: dict[tuple[int, GPUTarget], Compiled]) -> int:
    """Print the table and every problem; return the number of problems."""
    width = max(len(name) for name, *_ in SIGNATURES)
    print("registers+spills".ljust(width), *(f"{target.arch!s:>10}" for target in TARGETS))
    for index, (name, *_) in enumerate(SIGNATURES):
        cells = (str(results.get((index, target), "-")) for target in TARGETS)
        print(name.ljust(width), *(f"{cell:>10}" for cell in cells))
    bad = {task: result.problem() for task, result in results.items() if result.problem()}
    bad = differing(results) | bad
    for (index, target), what in bad.items():
        print(f"compile: {SIGNATURES[index][0]} for {target.arch}: {what}", file=sys.stderr)
    print(f"triton {triton.__version__}: {len(results)} compilations, {len(bad)} problems")
    return len(bad)


def of_record(results: dict[tuple[int, GPUTarget], Compiled], write: bool) -> int:
    """Print the resources of the cells' kernels; compare them to the record, or write it."""
    found: cell_record.Found = {}
    for (index, target), result in results.items():
        if result.taken is not None:
            name = f"sm_{target.arch}"
            found.setdefault(SIGNATURES[index][0], {})[name] = result.taken
            print(SIGNATURES[index][0], name, *map(str, result.taken))
    record = cell_record.read()
    if write:
        cell_record.write(found, triton.__version__)
        record = cell_record.read()
    if not cell_record.is_of(triton.__version__):
        print(f"{cell_record.PLACE} is for triton {record['triton']}: not compared")
        return 0
    bad = cell_record.misfits(found, PROGRAMS) + cell_record.crept_up(found, record)
    for what in bad:
        print(f"compile: {what}", file=sys.stderr)
    return len(bad)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.aot.compile", description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="of the package")
    parser.add_argument("--only", default="", help="words of the labels of kernels")
    parser.add_argument("--record", action="store_true", help=f"write {cell_record.RECORD.name}")
    return parser.parse_args()


def main(only: str, record: bool) -> int:
    tasks = [
        (index, target)
        for index, (label, *_) in enumerate(SIGNATURES)
        for target in TARGETS
        if target.arch in ARCHITECTURES.get(label, (target.arch,)) and only in label
    ]
    if not tasks:
        print("compile: signatures() lists no such kernel", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # an empty cache, so that everything is compiled
        # fork: the kernels are functions that cannot be pickled, only inherited.
        with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
            results = dict(zip(tasks, pool.map(compile_one, tasks, chunksize=1), strict=True))
    return 1 if report(results) + of_record(results, record) else 0


if __name__ == "__main__":
    given = arguments()
    SIGNATURES = load_signatures(given.root)
    sys.exit(main(given.only, given.record))
