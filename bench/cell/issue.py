"""The time in which a GPU can issue the instructions of the cell's kernels.

How many they are per element and half step is counted in their compiled code, docs/cell.json. A
processor issues an instruction of four warps a clock.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from bench.cell.methods import ACT
from revdeq_kernels.ops.cell.choice import GPU_ACTS
from tools.aot import cell_record

WAYS = {"forward": ("forward",), "train": ("forward", "back")}
LANES = 4 * 32
"""Threads for which a processor issues an instruction in a clock."""


@cache
def _kernels() -> dict[str, Any]:
    return cell_record.read()["kernels"]


def per_element(provider: str, part: str, features: int, architecture: str) -> float | None:
    """Instructions for an element and half step, of the beta and act measured and a W in bfloat16.

    None where the provider is no kernel of its own, or none is recorded.
    """
    total = 0.0
    for way in WAYS[part]:
        label = f"{provider} cell {way} bf16 {features} act {GPU_ACTS.index(ACT)} form 0 digits 8"
        taken = _kernels().get(label, {}).get(architecture)
        if taken is None:
            return None
        total += taken["instructions"]
    return total


def seconds(instructions: float, elements: int, steps: int, rate: float) -> float:
    """The time of a solve; `rate` is of instructions of threads, a second."""
    return instructions * elements * 2 * steps / rate


def rate(processors: int, clock: float) -> float:
    """Instructions of threads that so many processors issue a second, at so many clocks."""
    return LANES * processors * clock
