"""Small kernels around a single instruction, applied to arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.ptx.kernel import Kernel
from tools.ptx.machine import execute
from tools.ptx.memory import Memory

Array = NDArray[Any]

HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"
REGISTERS = """
    .reg .pred %p<10>;
    .reg .b16 %rs<10>;
    .reg .b32 %r<40>;
    .reg .b64 %rd<40>;
    .reg .b128 %rq<4>;
"""
PREFIX = {1: "p", 2: "rs", 4: "r", 8: "rd", 16: "rq"}


def kernel(body: str, parameters: Sequence[str] = ("u64",) * 2, declarations: str = "") -> Kernel:
    """A kernel `k` with parameters p0, p1, ... of these types."""
    listed = ", ".join(f".param .{kind} p{k}" for k, kind in enumerate(parameters))
    return Kernel(
        f"{HEADER}.visible .entry k({listed})\n{{{REGISTERS}{declarations}\n{body}\n ret;\n}}"
    )


def launch(
    body: str,
    *arrays: Array,
    grid: int = 1,
    threads: int = 32,
    declarations: str = "",
    shared_bytes: int = 0,
    **options: Any,
) -> int:
    """Run a body with the arrays' addresses in %rd0, %rd1, ... and the thread's index in %r0."""
    loads = [f"ld.param.u64 %rd{k}, [p{k}];" for k in range(len(arrays))]
    start = "\n".join(["mov.u32 %r0, %tid.x;", *loads])
    made = kernel(f"{start}\n{body}", ["u64"] * len(arrays), declarations)
    return execute(
        made,
        grid,
        [a.ctypes.data.to_bytes(8, "little") for a in arrays],
        Memory.of(arrays),
        threads=threads,
        shared_bytes=shared_bytes,
        **options,
    )


def apply(text: str, to: Array, *columns: Array, tail: str = "") -> Array:
    """An instruction on columns of bits, one element per thread; the result has `to`'s dtype.

    The operands follow the destination, then `tail`. Predicates are passed as bytes of 0 or 1.
    """
    count = len(columns[0])
    lines = [
        "mov.u32 %r30, %ctaid.x;",
        "mad.lo.s32 %r31, %r30, 128, %r0;",
        f"setp.ge.s32 %p9, %r31, {count};",
        "@%p9 bra DONE;",
    ]
    operands = []
    for k, column in enumerate(columns):
        size = column.dtype.itemsize
        name = f"%{PREFIX[max(size, 2)]}{k + 1}"
        lines.append(f"mad.wide.s32 %rd30, %r31, {size}, %rd{k + 1};")
        lines.append(f"ld.global.b{8 * size} {name}, [%rd30];")
        if column.dtype == np.bool_:
            lines.append(f"setp.ne.b16 %p{k + 1}, {name}, 0;")
            name = f"%p{k + 1}"
        operands.append(name)
    size = to.dtype.itemsize
    result = "%p8" if to.dtype == np.bool_ else f"%{PREFIX[max(size, 2)]}9"
    lines.append(f"{text} {', '.join([result, *operands])}{tail};")
    if to.dtype == np.bool_:
        lines.append("selp.b16 %rs9, 1, 0, %p8;")
        result = "%rs9"
    lines += [
        f"mad.wide.s32 %rd30, %r31, {size}, %rd0;",
        f"st.global.b{8 * size} [%rd30], {result};",
    ]
    out = np.zeros(count, to.dtype)
    grid = -(-count // 128)
    launch("\n".join([*lines, "DONE:"]), out, *columns, grid=grid, threads=128)
    return out


TYPES = {bits: np.zeros(0, f"u{bits // 8}") for bits in (8, 16, 32, 64)}
"""The types of results, by their bits."""

PREDICATE = np.zeros(0, np.bool_)
"""The type of a result that is a predicate."""
