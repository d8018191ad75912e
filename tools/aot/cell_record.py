"""Instructions, registers and programs of the cell's compiled kernels, compared to docs/cell.json.

A cell's time is bound by instruction issue, not by memory. The record holds the number of
instructions that each compiled kernel issues per element and half step, so that no change increases
it unnoticed. ``make cell-record`` writes it. Code compiled by another version of Triton is not
compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

RECORD = Path(__file__).parents[2] / "docs" / "cell.json"
PLACE = "docs/cell.json, which `make cell-record` writes"

THREADS_OF_WARP = 32
HALF_STEPS = {"triton": 2, "gluon": 1}
"""The number of half steps in the kernels' loop, by language."""


class Processor(NamedTuple):
    """A multiprocessor: CUDA C++ Programming Guide, technical specifications per capability."""

    shared: int
    warps: int
    registers: int = 65536
    reserved: int = 1024  # bytes of shared memory that the system reserves per program

    def programs(self, warps: int, registers: int, shared: int) -> int:
        """How many programs with these warps, registers per thread and bytes fit at once.

        Registers are allocated to warps in units of 256.
        """
        of_warp = -(-registers * THREADS_OF_WARP // 256) * 256
        return min(
            self.warps // warps,
            self.registers // (of_warp * warps),
            self.shared // (shared + self.reserved),
        )


PROCESSORS = {
    80: Processor(164 * 1024, 64),
    90: Processor(228 * 1024, 64),
    100: Processor(228 * 1024, 64),
}


class Taken(NamedTuple):
    """A kernel's resources on one architecture, and how many programs fit on a multiprocessor."""

    instructions: float  # per thread, element and half step
    registers: int
    shared: int
    programs: int


# ---- the loop over the steps -----------------------------------------------------------------

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);")
_BRANCH = re.compile(r"\bBRA\b.*?\b0x([0-9a-f]+)")
_PRODUCT = re.compile(r"\b(HMMA|HGMMA|UTC\w*MMA)\b")


def instructions_of_step(sass: str) -> int:
    """The SASS instructions of the loop over the steps, including its branches.

    This is the longest innermost loop with products: a loop around another such loop is the one
    over tiles. Waiting for a barrier is also a loop, but without products.
    """
    lines = [(int(address, 16), code) for address, code in _INSTRUCTION.findall(sass)]
    loops = []
    for address, code in lines:
        branch = _BRANCH.search(code)
        if branch is not None and int(branch[1], 16) <= address:
            loops.append((int(branch[1], 16), address))
    products = [address for address, code in lines if _PRODUCT.search(code)]
    with_products = {loop for loop in loops if any(loop[0] <= at <= loop[1] for at in products)}
    innermost = [
        (first, last)
        for first, last in with_products
        if not any(first <= a and b <= last for a, b in with_products - {(first, last)})
    ]
    counts = [sum(first <= address <= last for address, _ in lines) for first, last in innermost]
    return max(counts, default=0)


def taken(
    implementation: str,
    sass: str,
    cell: Any,
    warps: int,
    registers: int,
    shared: int,
    architecture: int,
) -> Taken:
    """The resources of a kernel with this number of warps per program; `cell` is its CELL."""
    elements = cell.tile * cell.features / (THREADS_OF_WARP * warps)
    per_element = instructions_of_step(sass) / (elements * HALF_STEPS[implementation])
    programs = PROCESSORS[architecture].programs(warps, registers, shared)
    return Taken(round(per_element, 1), registers, shared, programs)


# ---- the record ------------------------------------------------------------------------------

Found = dict[str, dict[str, Taken]]
"""By label of the kernel and architecture, such as "sm_90"."""


def read() -> dict[str, Any]:
    """The stored record, or an empty one."""
    if not RECORD.exists():
        return {"triton": "", "kernels": {}}
    return json.loads(RECORD.read_text(encoding="utf-8"))


def is_of(version: str) -> bool:
    """Whether the record was written with this version of Triton."""
    return read()["triton"] == version


def write(found: Found, version: str) -> None:
    """The record of these kernels as text, one line per kernel and architecture."""
    kernels = [
        f"    {json.dumps(label)}: {{\n"
        + ",\n".join(
            f"      {json.dumps(architecture)}: {json.dumps(taken._asdict())}"
            for architecture, taken in sorted(by_architecture.items())
        )
        + "\n    }"
        for label, by_architecture in sorted(found.items())
    ]
    text = f'{{\n  "triton": "{version}",\n  "kernels": {{\n' + ",\n".join(kernels) + "\n  }\n}\n"
    RECORD.write_text(text, encoding="utf-8")


def crept_up(found: Found, record: dict[str, Any]) -> list[str]:
    """A message for each kernel that issues more instructions than recorded."""
    return [
        f"{label} on {architecture}: expected it in {PLACE}"
        if known is None
        else f"{label} on {architecture}: {taken.instructions} instructions per element and half "
        f"step, more than the {known['instructions']} of {PLACE}"
        for label, by_architecture in found.items()
        for architecture, taken in by_architecture.items()
        for known in (record["kernels"].get(label, {}).get(architecture),)
        if known is None or taken.instructions > known["instructions"]
    ]


def misfits(found: Found, configured: Mapping[str, int]) -> list[str]:
    """A message for each configuration whose programs per multiprocessor are not what fits.

    A configuration applies to all kernels of one pass and kind of state, so the largest kernel
    determines what fits. `configured` holds the number of programs by label of the kernel.
    """
    held: dict[str, tuple[int, str, str]] = {}
    for label, by_architecture in found.items():
        for architecture, taken in by_architecture.items():
            state = "float32" if "float32" in label else "exact"
            key = " ".join((*label.split()[:5], state))
            least = (taken.programs, label, architecture)
            held[key] = min(held.get(key, least), least)
    return [
        f"{key}: starts {configured[label]} programs per multiprocessor, but {programs} of {label} "
        f"fit on {architecture}"
        for key, (programs, label, architecture) in held.items()
        if programs != configured[label]
    ]
