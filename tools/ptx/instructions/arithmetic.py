"""Arithmetic of integers (PTX ISA 9.7.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.errors import Fault
from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.kernel import Instruction
from tools.ptx.types import DTYPES, Array, size_of

if TYPE_CHECKING:
    from tools.ptx.machine import Machine

INTEGER = r"\.(?P<kind>[us](16|32|64))"


def wrapping(kind: str) -> str:
    """The unsigned type, in which sums and low products have the same bits."""
    return "u" + kind[1:]


@instruction("add", "sub", form=INTEGER)
def add(machine: Machine, inst: Instruction, kind: str) -> Step:
    kind = wrapping(kind)
    a, b = machine.read(inst.args[1], kind), machine.read(inst.args[2], kind)
    put = machine.writer(inst.args[0], kind)
    function = np.add if inst.op[0] == "add" else np.subtract
    return lambda: put(function(a(), b()))


@instruction("neg", "abs", form=r"\.(?P<kind>s(16|32|64))")
def negate(machine: Machine, inst: Instruction, kind: str) -> Step:
    a, put = machine.read(inst.args[1], kind), machine.writer(inst.args[0], kind)
    function = np.negative if inst.op[0] == "neg" else np.abs
    return lambda: put(function(a()))


@instruction("min", "max", form=INTEGER)
def extremum(machine: Machine, inst: Instruction, kind: str) -> Step:
    a, b = machine.read(inst.args[1], kind), machine.read(inst.args[2], kind)
    put = machine.writer(inst.args[0], kind)
    function = np.minimum if inst.op[0] == "min" else np.maximum
    return lambda: put(function(a(), b()))


@instruction("mul", form=rf"\.lo{INTEGER}")
def multiply_low(machine: Machine, inst: Instruction, kind: str) -> Step:
    kind = wrapping(kind)
    a, b = machine.read(inst.args[1], kind), machine.read(inst.args[2], kind)
    put = machine.writer(inst.args[0], kind)
    return lambda: put(np.multiply(a(), b()))


@instruction("mad", form=rf"\.lo{INTEGER}")
def multiply_add_low(machine: Machine, inst: Instruction, kind: str) -> Step:
    kind = wrapping(kind)
    a, b, c = (machine.read(operand, kind) for operand in inst.args[1:])
    put = machine.writer(inst.args[0], kind)
    return lambda: put(a() * b() + c())


@instruction("mul", "mad", form=r"\.wide\.(?P<kind>[us](16|32))")
def multiply_wide(machine: Machine, inst: Instruction, kind: str) -> Step:
    wide = kind[0] + str(2 * int(kind[1:]))
    a, b = machine.read(inst.args[1], kind), machine.read(inst.args[2], kind)
    put, dtype = machine.writer(inst.args[0], wide), DTYPES[wide]
    if inst.op[0] == "mul":
        return lambda: put(a().astype(dtype) * b().astype(dtype))
    c = machine.read(inst.args[3], wide)
    return lambda: put(a().astype(dtype) * b().astype(dtype) + c())


@instruction("mul", "mad", form=rf"\.hi{INTEGER}")
def multiply_high(machine: Machine, inst: Instruction, kind: str) -> Step:
    a, b = machine.read(inst.args[1], kind), machine.read(inst.args[2], kind)
    put = machine.writer(inst.args[0], kind)
    if inst.op[0] == "mul":
        return lambda: put(high_half(a(), b()))
    c = machine.read(inst.args[3], kind)
    return lambda: put(high_half(a(), b()) + c())


def high_half(a: Array, b: Array) -> Array:
    """The upper half of the product of two integers of the same type."""
    bits = 8 * a.dtype.itemsize
    if bits == 64:
        return _high_64(a, b)
    wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return (a.astype(wide) * b.astype(wide) >> wide.type(bits)).astype(a.dtype)


def _high_64(a: Array, b: Array) -> Array:
    """From four products of halves; the sign of a signed factor is corrected afterwards."""
    x, y = a.view(np.uint64), b.view(np.uint64)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    x1, x0, y1, y0 = x >> half, x & low, y >> half, y & low
    middle = x1 * y0 + (x0 * y0 >> half)
    other = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> half) + (other >> half)
    if a.dtype.kind == "i":
        zero = np.uint64(0)
        high = high - np.where(a < 0, y, zero) - np.where(b < 0, x, zero)
    return high.view(a.dtype)


@instruction("div", "rem", form=INTEGER)
def divide(machine: Machine, inst: Instruction, kind: str) -> Step:
    """The quotient is rounded toward zero; division by zero, which is undefined, is a fault."""
    a, b = machine.read(inst.args[1], kind), machine.read(inst.args[2], kind)
    put, quotient = machine.writer(inst.args[0], kind), inst.op[0] == "div"

    def step() -> None:
        x, y = a(), b()
        if not machine.running(y).all():
            raise Fault(f"divides by zero: {inst.text}")
        remainder = np.fmod(x, y)
        put((x - remainder) // y if quotient else remainder)

    return step


@instruction("sad", form=r"\.(?P<kind>[us](16|32|64))")
def sum_of_difference(machine: Machine, inst: Instruction, kind: str) -> Step:
    a, b, c = (machine.read(operand, kind) for operand in inst.args[1:])
    put = machine.writer(inst.args[0], kind)
    dtype = DTYPES[kind]
    assert size_of(kind) == dtype.itemsize

    def step() -> None:
        x, y = a(), b()
        put(c() + np.where(x > y, x - y, y - x))

    return step
