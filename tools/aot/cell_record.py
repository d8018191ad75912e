"""What the cell's compiled kernels take, held to docs/cell.json: instructions, registers, programs.

Time of a cell is bound by the instructions that a processor issues, not by memory: the record says
how many each kernel issues per element and half step, as compiled, and no change may raise one
unnoticed. ``make cell-record`` writes it. Another version of Triton compiles other code, which is
not held to it.
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
"""Half steps in the loop of each language's kernels."""


class Processor(NamedTuple):
    """What one of a GPU has: CUDA C++ Programming Guide, technical specifications by capability."""

    shared: int
    warps: int
    registers: int = 65536
    reserved: int = 1024  # bytes of shared memory that each program takes beside its own

    def programs(self, warps: int, registers: int, shared: int) -> int:
        """How many programs of so many warps, registers a thread and bytes it holds at once.

        A warp gets its registers in units of 256.
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
    """What a kernel takes on one architecture, and how many programs a processor holds of it."""

    instructions: float  # of a thread per element and half step
    registers: int
    shared: int
    programs: int


# ---- the loop over the steps -----------------------------------------------------------------

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);")
_BRANCH = re.compile(r"\bBRA\b.*?\b0x([0-9a-f]+)")
_PRODUCT = re.compile(r"\b(HMMA|HGMMA|UTC\w*MMA)\b")


def instructions_of_step(sass: str) -> int:
    """The instructions of the loop over the steps, with those of its branches, in SASS.

    It is the longest of the innermost loops with products: a loop that encloses another such one
    is that over the tiles. What waits for a barrier is a loop, too, without products.
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
    """Of a kernel of an implementation, with so many warps a program; `cell` is its CELL."""
    elements = cell.tile * cell.features / (THREADS_OF_WARP * warps)
    per_element = instructions_of_step(sass) / (elements * HALF_STEPS[implementation])
    programs = PROCESSORS[architecture].programs(warps, registers, shared)
    return Taken(round(per_element, 1), registers, shared, programs)


# ---- the record ------------------------------------------------------------------------------

Found = dict[str, dict[str, Taken]]
"""By the label of a kernel and its architecture, as "sm_90"."""


def read() -> dict[str, Any]:
    """The record, or an empty one."""
    if not RECORD.exists():
        return {"triton": "", "kernels": {}}
    return json.loads(RECORD.read_text(encoding="utf-8"))


def is_of(version: str) -> bool:
    """Whether the record is of this version of Triton."""
    return read()["triton"] == version


def write(found: Found, version: str) -> None:
    """The record of these kernels, a line for each on each architecture."""
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
    """The kernels that issue more instructions than recorded, in words."""
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
    """The configurations that start more programs on a processor than it holds, or fewer, in words.

    A configuration serves all its kernels of one direction and kind of state, so the one that takes
    the most decides. `configured` has its programs by the label of each kernel.
    """
    held: dict[str, tuple[int, str, str]] = {}
    for label, by_architecture in found.items():
        for architecture, taken in by_architecture.items():
            state = "float32" if "float32" in label else "exact"
            key = " ".join((*label.split()[:5], state))
            least = (taken.programs, label, architecture)
            held[key] = min(held.get(key, least), least)
    return [
        f"{key}: starts {configured[label]} programs on a processor, which holds {programs} of "
        f"{label} on {architecture}"
        for key, (programs, label, architecture) in held.items()
        if programs != configured[label]
    ]
