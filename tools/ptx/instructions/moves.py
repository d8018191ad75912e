"""Moves, address conversions, and instructions without effect here (PTX ISA 9.7.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.errors import Fault, Missing
from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.kernel import Instruction, split
from tools.ptx.types import UNSIGNED, size_of

if TYPE_CHECKING:
    from tools.ptx.machine import Machine


@instruction("mov", form=r"\.(?P<kind>pred|[bus](16|32|64)|f32|f64|b128)")
def move(machine: Machine, inst: Instruction, kind: str) -> Step:
    """Move a value, or a register to or from several parts, the lowest first."""
    to, source = inst.args
    if to.startswith("{"):
        return _unpack(machine, split(to[1:-1]), source, kind)
    if source.startswith("{"):
        return _pack(machine, to, split(source[1:-1]), kind)
    read, put = machine.read(source, kind), machine.writer(to, kind)
    return lambda: put(read())


def _unpack(machine: Machine, parts: list[str], source: str, kind: str) -> Step:
    bits = 8 * size_of(kind) // len(parts)
    read = machine.read(source, f"b{8 * size_of(kind)}")
    puts = [machine.writer(part, f"b{bits}") for part in parts]
    small = UNSIGNED[bits // 8]

    def step() -> None:
        columns = read().view(small).reshape(-1, len(parts))
        for k, put in enumerate(puts):
            put(np.ascontiguousarray(columns[:, k]))

    return step


def _pack(machine: Machine, to: str, parts: list[str], kind: str) -> Step:
    """Compilers do not write parts that they do not use."""
    bits = 8 * size_of(kind) // len(parts)
    reads = [machine.read_even_unwritten(part, f"b{bits}") for part in parts]
    put, whole = machine.writer(to, f"b{8 * size_of(kind)}"), UNSIGNED[size_of(kind)]

    def step() -> None:
        columns = np.broadcast_arrays(*(read() for read in reads))
        put(np.stack(columns, axis=1).reshape(-1).view(whole))

    return step


@instruction("cvta", form=r"(\.to)?\.global\.u64")
def convert_address(machine: Machine, inst: Instruction) -> Step:
    """Generic addresses of global memory are identical."""
    read, put = machine.read(inst.args[1], "u64"), machine.writer(inst.args[0], "u64")
    return lambda: put(read())


@instruction("membar", form=r"\.(cta|gl|sys)")
@instruction("fence", form=r"(\.(sc|acq_rel|acquire|release))?\.(cta|cluster|gpu|sys)")
def fence(machine: Machine, inst: Instruction) -> Step:
    """Threads see stores of others immediately, so there is nothing to do."""
    if inst.args:
        raise Missing(inst.text)
    return lambda: None


@instruction("trap", form="")
def trap(machine: Machine, inst: Instruction) -> Step:
    def step() -> None:
        raise Fault("runs into a trap")

    return step
