"""Short kernels in PTX to try an instruction: parameters, loads and stores around a few lines.

Every thread has a record of its own in each array: `registers` words, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.ptx.kernel import Kernel
from tools.ptx.machine import execute
from tools.ptx.memory import Memory

HEAD = """
.version 8.8
.target sm_100a
.address_size 64
.extern .shared .align 1024 .b8 shared[];
.visible .entry tried({parameters})
.reqntid {threads}
{{
  .reg .pred %p<8>;
  .reg .b16 %h<8>;
  .reg .b32 %r<512>;
  .reg .b32 %thread, %block, %warp;
  .reg .b64 %d<16>;
  .reg .b64 %at;
  .reg .b64 %array<8>;
  mov.u32 %thread, %tid.x;
  mov.u32 %block, %ctaid.x;
  shr.u32 %warp, %thread, 5;
"""


def run(
    lines: Sequence[str], *arrays: NDArray[Any], threads: int = 32, blocks: int = 1, shared: int = 0
) -> None:
    """Execute the lines in every thread; %array0 and so on are the addresses of the arrays."""
    parameters = ", ".join(f".param .u64 array{k}" for k in range(len(arrays)))
    begin = [f"ld.param.b64 %array{k}, [array{k}];" for k in range(len(arrays))]
    text = HEAD.format(parameters=parameters, threads=threads)
    text += "\n".join(f"  {line}" for line in [*begin, *lines, "ret;"]) + "\n}\n"
    addresses = [a.ctypes.data.to_bytes(8, "little") for a in arrays]
    memory = Memory.of(arrays)
    execute(Kernel(text), blocks, addresses, memory, threads=threads, shared_bytes=shared)


def records(array: int, words: int, threads: int = 32) -> list[str]:
    """%at: where the record of this thread begins, of so many words in an array."""
    return [
        f"mad.lo.s32 %r511, %block, {threads}, %thread;",
        f"mad.wide.u32 %at, %r511, {4 * words}, %array{array};",
    ]


def load(array: int, first: int, words: int, threads: int = 32) -> list[str]:
    """This thread's record of an array into registers %r[first] on."""
    lines = [f"ld.global.b32 %r{first + k}, [%at+{4 * k}];" for k in range(words)]
    return records(array, words, threads) + lines


def store(array: int, first: int, words: int, threads: int = 32) -> list[str]:
    """Registers %r[first] on into this thread's record of an array."""
    lines = [f"st.global.b32 [%at+{4 * k}], %r{first + k};" for k in range(words)]
    return records(array, words, threads) + lines


def to_shared(array: int, words: int, threads: int = 32) -> list[str]:
    """So many words of an array into shared memory, by all threads; no barrier follows."""
    return [
        "shl.b32 %r510, %thread, 2;",
        "cvt.u64.u32 %d15, %r510;",
        f"add.s64 %at, %array{array}, %d15;",
        "mov.u32 %r509, shared;",
        "add.s32 %r510, %r510, %r509;",
        *(
            line
            for k in range(0, words, threads)
            for line in (
                f"ld.global.b32 %r509, [%at+{4 * k}];",
                f"st.shared.b32 [%r510+{4 * k}], %r509;",
            )
        ),
    ]


def from_shared(array: int, words: int, threads: int = 32) -> list[str]:
    """So many words of shared memory into an array, by all threads."""
    return [
        "shl.b32 %r510, %thread, 2;",
        "cvt.u64.u32 %d15, %r510;",
        f"add.s64 %at, %array{array}, %d15;",
        "mov.u32 %r509, shared;",
        "add.s32 %r510, %r510, %r509;",
        *(
            line
            for k in range(0, words, threads)
            for line in (
                f"ld.shared.b32 %r509, [%r510+{4 * k}];",
                f"st.global.b32 [%at+{4 * k}], %r509;",
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
