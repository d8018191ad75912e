"""Logic, shifts and fields of bits (PTX ISA 9.7.1 and 9.7.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.errors import Missing
from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.kernel import Instruction
from tools.ptx.types import DTYPES, Array

if TYPE_CHECKING:
    from tools.ptx.machine import Machine

LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@instruction("and", "or", "xor", form=r"\.(?P<kind>pred|b(16|32|64))")
def logic(machine: Machine, inst: Instruction, kind: str) -> Step:
    a, b = machine.read(inst.args[1], kind), machine.read(inst.args[2], kind)
    put, function = machine.writer(inst.args[0], kind), LOGIC[inst.op[0]]
    return lambda: put(function(a(), b()))


@instruction("not", form=r"\.(?P<kind>pred|b(16|32|64))")
def complement(machine: Machine, inst: Instruction, kind: str) -> Step:
    a, put = machine.read(inst.args[1], kind), machine.writer(inst.args[0], kind)
    return lambda: put(~a())


@instruction("cnot", form=r"\.(?P<kind>b(16|32|64))")
def logical_not(machine: Machine, inst: Instruction, kind: str) -> Step:
    a, put = machine.read(inst.args[1], kind), machine.writer(inst.args[0], kind)
    return lambda: put((a() == 0).astype(DTYPES[kind]))


@instruction("lop3", form=r"\.b32")
def logic_of_three(machine: Machine, inst: Instruction) -> Step:
    """Bit (a, b, c) of the result is bit 4 a + 2 b + c of the table."""
    a, b, c = (machine.read(operand, "b32") for operand in inst.args[1:4])
    put, table = machine.writer(inst.args[0], "b32"), machine.constant_bits(inst.args[4], "b32")

    def step() -> None:
        x, y, z = a(), b(), c()
        result = np.zeros(1, np.uint32)
        for index in range(8):
            if table >> index & 1:
                first = x if index & 4 else ~x
                result = result | first & (y if index & 2 else ~y) & (z if index & 1 else ~z)
        put(result)

    return step


@instruction("shl", form=r"\.(?P<kind>b(16|32|64))")
def shift_left(machine: Machine, inst: Instruction, kind: str) -> Step:
    return _shift(machine, inst, kind, np.left_shift)


@instruction("shr", form=r"\.(?P<kind>[bus](16|32|64))")
def shift_right(machine: Machine, inst: Instruction, kind: str) -> Step:
    return _shift(machine, inst, kind, np.right_shift)


def _shift(machine: Machine, inst: Instruction, kind: str, function: np.ufunc) -> Step:
    """Amounts are clamped to the width, which leaves only zeros, or the sign."""
    a, amount = machine.read(inst.args[1], kind), machine.read(inst.args[2], "u32")
    put, dtype = machine.writer(inst.args[0], kind), DTYPES[kind]
    bits = 8 * dtype.itemsize
    if inst.args[2].isdigit() and int(inst.args[2]) < bits:
        fixed = np.array([int(inst.args[2])], dtype)
        return lambda: put(function(a(), fixed))

    def step() -> None:
        value, by = a(), amount()
        shifted = function(value, np.minimum(by, bits - 1).astype(dtype))
        put(shifted if dtype.kind == "i" else np.where(by < bits, shifted, dtype.type(0)))

    return step


@instruction("shf", form=r"\.(?P<way>l|r)\.(?P<mode>wrap|clamp)\.b32")
def funnel_shift(machine: Machine, inst: Instruction, way: str, mode: str) -> Step:
    """Shifts the 64 bits b:a; the upper half of a left shift, the lower half of a right shift."""
    a, b, amount = (machine.read(operand, "b32") for operand in inst.args[1:])
    put = machine.writer(inst.args[0], "b32")

    def step() -> None:
        both = a().astype(np.uint64) | b().astype(np.uint64) << np.uint64(32)
        by = amount()
        by = (by & np.uint32(31) if mode == "wrap" else np.minimum(by, 32)).astype(np.uint64)
        found = both << by >> np.uint64(32) if way == "l" else both >> by
        put(found.astype(np.uint32))

    return step


@instruction("bfe", form=r"\.(?P<kind>[us](32|64))")
def extract_field(machine: Machine, inst: Instruction, kind: str) -> Step:
    """Bits above the value are its sign if it is signed, otherwise zero."""
    a, put = machine.read(inst.args[1], kind), machine.writer(inst.args[0], kind)
    first, length = machine.read(inst.args[2], "u32"), machine.read(inst.args[3], "u32")
    dtype = DTYPES[kind]
    bits = 8 * dtype.itemsize

    def step() -> None:
        start, size = first() & np.uint32(255), length() & np.uint32(255)
        low = _shift_clamped(a(), start)
        # Shifted to the top and back, so that the field's upper bit fills the bits above it.
        up = np.minimum(np.maximum(bits - size.astype(np.int64), 0), bits - 1).astype(dtype)
        field = low << up >> up
        put(np.where(size == 0, dtype.type(0), field))

    return step


def _shift_clamped(value: Array, by: Array) -> Array:
    dtype = value.dtype
    bits = 8 * dtype.itemsize
    shifted = value >> np.minimum(by, bits - 1).astype(dtype)
    return shifted if dtype.kind == "i" else np.where(by < bits, shifted, dtype.type(0))


@instruction("bfi", form=r"\.(?P<kind>b(32|64))")
def insert_field(machine: Machine, inst: Instruction, kind: str) -> Step:
    a, b = machine.read(inst.args[1], kind), machine.read(inst.args[2], kind)
    first, length = machine.read(inst.args[3], "u32"), machine.read(inst.args[4], "u32")
    put, dtype = machine.writer(inst.args[0], kind), DTYPES[kind]
    bits, one = 8 * dtype.itemsize, dtype.type(1)

    def step() -> None:
        start, size = first() & np.uint32(255), length() & np.uint32(255)
        ones = (one << np.minimum(size, bits - 1).astype(dtype)) - one
        ones = np.where(size < bits, ones, ~dtype.type(0))
        by = np.minimum(start, bits - 1).astype(dtype)
        inside = np.where(start < bits, ones << by, dtype.type(0))
        put(b() & ~inside | a() << by & inside)

    return step


@instruction("popc", form=r"\.(?P<kind>b(32|64))")
def count_ones(machine: Machine, inst: Instruction, kind: str) -> Step:
    a, put = machine.read(inst.args[1], kind), machine.writer(inst.args[0], "u32")
    return lambda: put(np.bitwise_count(a()).astype(np.uint32))


@instruction("clz", form=r"\.(?P<kind>b(32|64))")
def leading_zeros(machine: Machine, inst: Instruction, kind: str) -> Step:
    a, put = machine.read(inst.args[1], kind), machine.writer(inst.args[0], "u32")
    bits = np.uint32(8 * DTYPES[kind].itemsize)
    return lambda: put(bits - np.bitwise_count(_smeared(a())).astype(np.uint32))


def _smeared(value: Array) -> Array:
    """All bits from the highest set bit down to the lowest bit."""
    for by in (1, 2, 4, 8, 16, 32):
        if by < 8 * value.dtype.itemsize:
            value = value | value >> value.dtype.type(by)
    return value


@instruction("bfind", form=r"(?P<distance>\.shiftamt)?\.(?P<kind>[us](32|64))")
def find_leading(machine: Machine, inst: Instruction, distance: str | None, kind: str) -> Step:
    """The position of the highest set bit (of a negative number: the highest clear bit), or -1."""
    a, put = machine.read(inst.args[1], kind), machine.writer(inst.args[0], "u32")
    bits, unsigned = 8 * DTYPES[kind].itemsize, DTYPES["u" + kind[1:]]

    def step() -> None:
        value = a()
        if kind[0] == "s":
            value = np.where(value < 0, ~value, value)
        at = np.bitwise_count(_smeared(value.view(unsigned))).astype(np.int64) - 1
        if distance:
            at = np.where(at < 0, at, bits - 1 - at)
        put(at.astype(np.uint32))

    return step


@instruction("brev", form=r"\.(?P<kind>b(32|64))")
def reverse_bits(machine: Machine, inst: Instruction, kind: str) -> Step:
    a, put = machine.read(inst.args[1], kind), machine.writer(inst.args[0], kind)
    dtype = DTYPES[kind]

    def step() -> None:
        bits = np.unpackbits(a().view(np.uint8).reshape(-1, dtype.itemsize), axis=1)
        # unpackbits starts with the highest bit of the lowest byte.
        turned = np.packbits(bits[:, ::-1], axis=1)
        put(np.ascontiguousarray(turned).view(dtype).reshape(-1))

    return step


@instruction("prmt", form=r"\.b32")
def permute_bytes(machine: Machine, inst: Instruction) -> Step:
    """Each byte is one of the eight of b:a or, with bit 3 of its selector, that byte's sign."""
    a, b, selector = (machine.read(operand, "b32") for operand in inst.args[1:])
    put = machine.writer(inst.args[0], "b32")
    if len(inst.args) != 4:
        raise Missing(inst.text)

    def step() -> None:
        both = a().astype(np.uint64) | b().astype(np.uint64) << np.uint64(32)
        picks, result = selector(), np.zeros(1, np.uint32)
        for k in range(4):
            pick = picks >> np.uint32(4 * k) & np.uint32(15)
            shift = (pick & np.uint32(7)).astype(np.uint64) << np.uint64(3)
            byte = (both >> shift).astype(np.uint32) & np.uint32(255)
            if (signs := pick > 7).any():
                byte = np.where(signs, (byte >> np.uint32(7)) * np.uint32(255), byte)
            result = result | byte << np.uint32(8 * k)
        put(result)

    return step
