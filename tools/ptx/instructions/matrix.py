"""ldmatrix, stmatrix and mma.sync: warp-wide matrix instructions (PTX ISA 9.7.14.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.errors import Missing
from tools.ptx.instructions import fragments
from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.kernel import Instruction, split
from tools.ptx.types import UNSIGNED, Array

if TYPE_CHECKING:
    from tools.ptx.machine import Machine

ROW = 16
"""Bytes per row of an 8x8 matrix of 16-bit elements, which is one aligned access."""

MATRICES = r"\.sync\.aligned\.m8n8\.x(?P<count>[124])(?P<trans>\.trans)?\.shared(::cta)?\.b16"
PRODUCT = (
    r"\.sync\.aligned\.m16n8k(?P<depth>8|16)\.row\.col"
    r"\.f32\.(?P<kind>bf16|f16|tf32)\.(?P=kind)\.f32"
)


def vector(operand: str) -> list[str]:
    """The registers of ``{%r1, %r2}``."""
    if not operand.startswith("{"):
        raise Missing(f"the operand {operand}")
    return split(operand[1:-1])


@instruction("ldmatrix", form=MATRICES, together="warp")
def ldmatrix(machine: Machine, inst: Instruction, count: str, trans: str | None) -> Step:
    """Lane 8 m + r provides the address of row r of matrix m; each lane receives two elements."""
    writers = [machine.writer(name, "b32") for name in vector(inst.args[0])]
    address = machine.address(inst.args[1])

    def load() -> None:
        lanes, at, blocks, warps = _rows(machine, address(), int(count), inst.text)
        rows = machine.shared.load(at, blocks, warps, UNSIGNED[ROW], 1, inst.text)[0]
        matrices = rows.view(np.uint16).reshape(-1, int(count), 8, 8)
        if trans:
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
        words = matrices.view(np.uint32).reshape(-1, int(count), 32).swapaxes(0, 1)
        for write, found in zip(writers, words, strict=True):
            values = np.zeros(machine.count, np.uint32)
            values[lanes] = found.reshape(-1)
            write(values)

    return load


@instruction("stmatrix", form=MATRICES, together="warp")
def stmatrix(machine: Machine, inst: Instruction, count: str, trans: str | None) -> Step:
    """The reverse of ldmatrix."""
    reads = [machine.read_all(name, "b32") for name in vector(inst.args[1])]
    address = machine.address(inst.args[0])
    if len(reads) != int(count):
        raise Missing(inst.text)

    def store() -> None:
        lanes, at, blocks, warps = _rows(machine, address(), int(count), inst.text)
        words = np.stack([read()[lanes] for read in reads]).reshape(int(count), -1, 8, 4)
        matrices = words.view(np.uint16).swapaxes(0, 1)
        if trans:
            matrices = matrices.swapaxes(2, 3)
        rows = np.ascontiguousarray(matrices).view(UNSIGNED[ROW]).reshape(-1)
        machine.shared.store(at, blocks, warps, [rows], inst.text)

    return store


def _rows(
    machine: Machine, addresses: Array, count: int, text: str
) -> tuple[Array | slice, Array, Array, Array]:
    """The running lanes, and the position, block and warp of each row that they address."""
    lanes = slice(None) if machine.mask is None else np.nonzero(machine.mask)[0]
    given, blocks, warps = (
        values[lanes].reshape(-1, 32)[:, : 8 * count].reshape(-1)
        for values in (machine.spread(addresses), machine.block, machine.warp)
    )
    return lanes, machine.shared.positions(given, blocks, ROW, text), blocks, warps


@instruction("mma", form=PRODUCT, together="warp")
def mma(machine: Machine, inst: Instruction, depth: str, kind: str) -> Step:
    """D = A B + C per warp, [16, depth] by [depth, 8]; the sums are rounded once."""
    if (depth == "8") != (kind == "tf32"):
        raise Missing(inst.text)
    out, a, b, c = map(vector, inst.args)
    writers = [machine.writer(name, "f32") for name in out]
    read_a, read_b = ([machine.read_all(name, "b32") for name in names] for names in (a, b))
    read_c = [machine.read_all(name, "f32") for name in c]

    def multiply() -> None:
        left = fragments.a_fragment([read() for read in read_a], kind)
        right = fragments.b_fragment([read() for read in read_b], kind)
        sums = left @ right + fragments.d_fragment([read() for read in read_c])
        for write, values in zip(
            writers, fragments.nearest(fragments.d_registers(sums)), strict=True
        ):
            write(values)

    return multiply
