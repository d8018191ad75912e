"""What kernels for instructions of whole warps share: records of threads, and shared memory.

Every thread has a record of its own in each array: some words, one after the other. Registers are
those of ``harness.py`` and %v0 to %v511 of 32 bits, the last of which the functions here use.
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
    """Execute the lines in every thread; ``shared`` is the name of so many bytes."""
    declared = DECLARED + f".shared .align 1024 .b8 shared[{max(shared, 1)}];"
    launch(
        "\n".join([*BEGIN, *lines]), *arrays, grid=blocks, threads=threads, declarations=declared
    )


def records(array: int, words: int, threads: int = 32) -> list[str]:
    """%at: where the record of this thread begins, of so many words in an array."""
    return [
        f"mad.lo.s32 %v511, %block, {threads}, %thread;",
        f"mad.wide.u32 %at, %v511, {4 * words}, %rd{array};",
    ]


def load(array: int, first: int, words: int, threads: int = 32) -> list[str]:
    """This thread's record of an array into registers %v[first] on."""
    lines = [f"ld.global.b32 %v{first + k}, [%at+{4 * k}];" for k in range(words)]
    return records(array, words, threads) + lines


def store(array: int, first: int, words: int, threads: int = 32) -> list[str]:
    """Registers %v[first] on into this thread's record of an array."""
    lines = [f"st.global.b32 [%at+{4 * k}], %v{first + k};" for k in range(words)]
    return records(array, words, threads) + lines


def to_shared(array: int, words: int, threads: int = 32) -> list[str]:
    """So many words of an array into shared memory, by all threads; no barrier follows."""
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
    """So many words of shared memory into an array, by all threads."""
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
    """A vector of registers, as instructions take it."""
    return "{" + ", ".join(f"{prefix}{k}" for k in range(first, first + count)) + "}"


def bits_of(values: NDArray[Any], kind: str) -> NDArray[Any]:
    """Small whole numbers as the bits of bf16, f16 or TF32, which have all of them."""
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16) if kind == "bf16" else bits
