"""Helpers for kernels with warp-wide instructions: records of threads, and shared memory.

Every thread has its own record in each array: some consecutive words. Registers are those of
``harness.py`` and 32-bit %v0 to %v511, of which the functions here use the last ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.harness import launch

DECLARED = """
  .reg .b32 %v<512>;
  .reg .b32 %thread, %block, %warp;
  .reg .b64 %d<16>;
  .reg .b64 %at;
"""
BEGIN = ["mov.u32 %thread, %tid.x;", "mov.u32 %block, %ctaid.x;", "shr.u32 %warp, %thread, 5;"]


def run(
    lines: Sequence[str], *arrays: NDArray[Any], threads: int = 32, blocks: int = 1, shared: int = 0
) -> None:
    """Execute the lines in every thread; the name ``shared`` refers to this many bytes."""
    declared = DECLARED + f".shared .align 1024 .b8 shared[{max(shared, 1)}];"
    launch(
        "\n".join([*BEGIN, *lines]), *arrays, grid=blocks, threads=threads, declarations=declared
    )


def records(array: int, words: int, threads: int = 32) -> list[str]:
    """%at: the address of this thread's record with this many words in an array."""
    return [
        f"mad.lo.s32 %v511, %block, {threads}, %thread;",
        f"mad.wide.u32 %at, %v511, {4 * words}, %rd{array};",
    ]


def load(array: int, first: int, words: int, threads: int = 32) -> list[str]:
    """Load this thread's record of an array into registers from %v[first]."""
    lines = [f"ld.global.b32 %v{first + k}, [%at+{4 * k}];" for k in range(words)]
    return records(array, words, threads) + lines


def store(array: int, first: int, words: int, threads: int = 32) -> list[str]:
    """Store registers from %v[first] to this thread's record of an array."""
    lines = [f"st.global.b32 [%at+{4 * k}], %v{first + k};" for k in range(words)]
    return records(array, words, threads) + lines


def to_shared(array: int, words: int, threads: int = 32) -> list[str]:
    """Copy this many words of an array to shared memory, with all threads; no barrier follows."""
    return [
        "shl.b32 %v510, %thread, 2;",
        "cvt.u64.u32 %d15, %v510;",
        f"add.s64 %at, %rd{array}, %d15;",
        "mov.u32 %v509, shared;",
        "add.s32 %v510, %v510, %v509;",
        *(
            line
            for k in range(0, words, threads)
            for line in (
                f"ld.global.b32 %v509, [%at+{4 * k}];",
                f"st.shared.b32 [%v510+{4 * k}], %v509;",
            )
        ),
    ]


def from_shared(array: int, words: int, threads: int = 32) -> list[str]:
    """Copy this many words of shared memory to an array, with all threads."""
    return [
        "shl.b32 %v510, %thread, 2;",
        "cvt.u64.u32 %d15, %v510;",
        f"add.s64 %at, %rd{array}, %d15;",
        "mov.u32 %v509, shared;",
        "add.s32 %v510, %v510, %v509;",
        *(
            line
            for k in range(0, words, threads)
            for line in (
                f"ld.shared.b32 %v509, [%v510+{4 * k}];",
                f"st.global.b32 [%at+{4 * k}], %v509;",
            )
        ),
    ]


def listed(prefix: str, first: int, count: int) -> str:
    """A vector of registers in the syntax of an operand."""
    return "{" + ", ".join(f"{prefix}{k}" for k in range(first, first + count)) + "}"


def bits_of(values: NDArray[Any], kind: str) -> NDArray[Any]:
    """Small integers as the bits of bf16, f16 or TF32, which represent them exactly."""
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16) if kind == "bf16" else bits
