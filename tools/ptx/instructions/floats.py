"""Arithmetic of floating-point numbers (PTX ISA 9.7.3, 9.7.4, 9.7.5).

Approximations (``.approx``, ``.full``) are computed in float64 and rounded; hardware results differ
in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.kernel import Instruction
from tools.ptx.numbers import (
    BITS,
    F16,
    F32,
    F64,
    U64,
    add_to_odd,
    extremum,
    flush,
    fma_f32,
    fma_f64,
    fma_wide,
    narrow,
    saturate,
    widen_bf16,
)
from tools.ptx.types import DTYPES, Array

if TYPE_CHECKING:
    from tools.ptx.machine import Machine

Reader = Callable[[], Array]
Writer = Callable[[Array], None]

BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
ROUNDING = r"(\.(?P<rounding>rn|rz|rm|rp))?"
HALF = r"(f16|bf16)(x2)?"


def readers(machine: Machine, inst: Instruction, kind: str, ftz: str | None) -> list[Reader]:
    """Readers of the operands after the destination; .ftz flushes subnormals to zero."""
    reads = [machine.read(operand, kind) for operand in inst.args[1:]]
    return [_flushed(read) for read in reads] if ftz else reads


def _flushed(read: Reader) -> Reader:
    return lambda: flush(read())


def writer(
    machine: Machine, inst: Instruction, kind: str, ftz: str | None, sat: str | None = None
) -> Writer:
    """Writer of the destination; .sat clamps to [0, 1] and NaN to zero."""
    put = machine.writer(inst.args[0], kind)
    if sat:
        return lambda value: put(saturate(flush(value) if ftz else value))
    return (lambda value: put(flush(value))) if ftz else put


@instruction("add", "sub", "mul", form=rf"{ROUNDING}(?P<ftz>\.ftz)?(?P<sat>\.sat)?\.f32")
def binary_f32(
    machine: Machine, inst: Instruction, rounding: str | None, ftz: str | None, sat: str | None
) -> Step:
    a, b = readers(machine, inst, "f32", ftz)
    put, name = writer(machine, inst, "f32", ftz, sat), inst.op[0]
    if rounding in (None, "rn"):
        function = BINARY[name]
        return lambda: put(function(a(), b()))
    direction = rounding

    def step() -> None:
        x, y = a().astype(F64), b().astype(F64)
        exact = x * y if name == "mul" else add_to_odd(x, y if name == "add" else -y, direction)
        put(narrow(exact, "f32", direction))

    return step


@instruction("add", "sub", "mul", form=r"(\.rn)?\.f64")
def binary_f64(machine: Machine, inst: Instruction) -> Step:
    a, b = readers(machine, inst, "f64", None)
    put, function = machine.writer(inst.args[0], "f64"), BINARY[inst.op[0]]
    return lambda: put(function(a(), b()))


@instruction("add", "sub", "mul", form=r"(\.rn)?(?P<ftz>\.ftz)?\.f32x2")
def binary_pair(machine: Machine, inst: Instruction, ftz: str | None) -> Step:
    """Two float32 in a 64-bit register."""
    a, b = (_pairs(machine, operand, ftz) for operand in inst.args[1:])
    put, function = _pair_writer(machine, inst, ftz), BINARY[inst.op[0]]
    return lambda: put(function(a(), b()))


@instruction("fma", form=r"\.rn(?P<ftz>\.ftz)?\.f32x2")
def fma_pair(machine: Machine, inst: Instruction, ftz: str | None) -> Step:
    a, b, c = (_pairs(machine, operand, ftz) for operand in inst.args[1:])
    put = _pair_writer(machine, inst, ftz)
    return lambda: put(fma_f32(a(), b(), c()))


def _pairs(machine: Machine, operand: str, ftz: str | None) -> Reader:
    read = machine.read(operand, "b64")
    plain = lambda: read().view(F32).reshape(-1, 2)  # noqa: E731
    return _flushed(plain) if ftz else plain


def _pair_writer(machine: Machine, inst: Instruction, ftz: str | None) -> Writer:
    put = machine.writer(inst.args[0], "b64")

    def write(value: Array) -> None:
        put((flush(value) if ftz else value).reshape(-1).view(U64))

    return write


@instruction("fma", "mad", form=r"\.(?P<rounding>rn|rz|rm|rp)(?P<ftz>\.ftz)?(?P<sat>\.sat)?\.f32")
def fused_f32(
    machine: Machine, inst: Instruction, rounding: str, ftz: str | None, sat: str | None
) -> Step:
    a, b, c = readers(machine, inst, "f32", ftz)
    put = writer(machine, inst, "f32", ftz, sat)
    return lambda: put(fma_f32(a(), b(), c(), rounding))


@instruction("fma", "mad", form=r"\.rn\.f64")
def fused_f64(machine: Machine, inst: Instruction) -> Step:
    a, b, c = readers(machine, inst, "f64", None)
    put = machine.writer(inst.args[0], "f64")
    return lambda: put(fma_f64(a(), b(), c()))


HALVES: dict[str, Callable[..., Array]] = {
    "add": add_to_odd,
    "sub": lambda a, b: add_to_odd(a, -b),
    "mul": np.multiply,
    "fma": fma_wide,
}
"""The operation on float64, exact or rounded to odd."""


@instruction("add", "sub", "mul", form=rf"(\.rn)?(?P<sat>\.sat)?\.(?P<kind>{HALF})")
@instruction("fma", form=rf"\.rn(?P<sat>\.sat)?(?P<relu>\.relu)?\.(?P<kind>{HALF})")
def half_arithmetic(
    machine: Machine, inst: Instruction, kind: str, sat: str | None, relu: str | None = None
) -> Step:
    """f16 and bf16, and pairs of these in a 32-bit register."""
    reads = [_halves(machine, operand, kind) for operand in inst.args[1:]]
    put, function = half_writer(machine, inst.args[0], kind), HALVES[inst.op[0]]

    def step() -> None:
        value = function(*(read() for read in reads))
        if sat:
            value = saturate(value)
        put(np.where(value < 0, 0.0, value) if relu else value)

    return step


def _halves(machine: Machine, operand: str, kind: str) -> Reader:
    """The values as float64: [thread] or [thread, 2]."""
    read, pair = machine.read(operand, "b32" if "x2" in kind else "b16"), "x2" in kind

    def numbers() -> Array:
        bits = read().view(np.uint16).reshape(-1, 2) if pair else read()
        return (widen_bf16(bits) if kind.startswith("b") else bits.view(F16)).astype(F64)

    return numbers


def half_writer(machine: Machine, operand: str, kind: str) -> Writer:
    """Stores float64, exact or rounded to odd: [thread] or [thread, 2]."""
    put, pair = machine.writer(operand, "b32" if "x2" in kind else "b16"), "x2" in kind

    def write(value: Array) -> None:
        bits = narrow(value, kind.removesuffix("x2")).view(np.uint16)
        put(bits.reshape(-1).view(np.uint32) if pair else bits)

    return write


SIGN = {"f16": 0x8000, "bf16": 0x8000, "f16x2": 0x80008000, "bf16x2": 0x80008000}
SIGN |= {"f32": 1 << 31, "f64": 1 << 63}


@instruction("neg", "abs", form=rf"(?P<ftz>\.ftz)?\.(?P<kind>f32)|\.(?P<other>f64|{HALF})")
def change_sign(
    machine: Machine, inst: Instruction, ftz: str | None, kind: str | None, other: str | None
) -> Step:
    kind = kind or other or ""
    (a,) = readers(machine, inst, kind, ftz)
    put, dtype = machine.writer(inst.args[0], kind), DTYPES[kind]
    bits = BITS.get(dtype, dtype)
    sign = bits.type(SIGN[kind])
    if inst.op[0] == "neg":
        return lambda: put((a().view(bits) ^ sign).view(dtype))
    return lambda: put((a().view(bits) & ~sign).view(dtype))


@instruction("copysign", form=r"\.(?P<kind>f32|f64)")
def copy_sign(machine: Machine, inst: Instruction, kind: str) -> Step:
    """The magnitude of the second operand with the sign of the first."""
    sign, magnitude = readers(machine, inst, kind, None)
    put = machine.writer(inst.args[0], kind)
    return lambda: put(np.copysign(magnitude(), sign()))


@instruction("min", "max", form=r"(?P<ftz>\.ftz)?(?P<nan>\.NaN)?\.(?P<kind>f32)")
@instruction("min", "max", form=r"\.(?P<kind>f64)")
def float_extremum(
    machine: Machine, inst: Instruction, kind: str, ftz: str | None = None, nan: str | None = None
) -> Step:
    """Of two operands; of three since PTX 8.8, on sm_100."""
    first, *others = readers(machine, inst, kind, ftz)
    put, largest = writer(machine, inst, kind, ftz), inst.op[0] == "max"
    of_two = _or_nan if nan else extremum

    def step() -> None:
        found = first()
        for other in others:
            found = of_two(found, other(), largest)
        put(found)

    return step


@instruction("min", "max", form=rf"(?P<nan>\.NaN)?\.(?P<kind>{HALF})")
def half_extremum(machine: Machine, inst: Instruction, nan: str | None, kind: str) -> Step:
    a, b = (_halves(machine, operand, kind) for operand in inst.args[1:])
    put, largest = half_writer(machine, inst.args[0], kind), inst.op[0] == "max"
    function = _or_nan if nan else extremum
    return lambda: put(function(a(), b(), largest))


def _or_nan(a: Array, b: Array, largest: bool) -> Array:
    return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), extremum(a, b, largest))


@instruction("div", form=r"\.(rn|approx|full)(?P<ftz>\.ftz)?\.(?P<kind>f32)|\.rn\.(?P<other>f64)")
def divide(
    machine: Machine, inst: Instruction, ftz: str | None, kind: str | None, other: str | None
) -> Step:
    kind = kind or other or ""
    a, b = readers(machine, inst, kind, ftz)
    put = writer(machine, inst, kind, ftz)
    return lambda: put(a() / b())


UNARY: dict[str, Callable[[Array], Array]] = {
    "sqrt": np.sqrt,
    "rcp": lambda x: 1.0 / x,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@instruction("sqrt", "rcp", form=r"\.(rn|approx)(?P<ftz>\.ftz)?\.f32")
@instruction("rsqrt", "ex2", "lg2", "sin", "cos", form=r"\.approx(?P<ftz>\.ftz)?\.f32")
@instruction("tanh", form=r"\.approx\.f32")
def unary_f32(machine: Machine, inst: Instruction, ftz: str | None = None) -> Step:
    """For sqrt and rcp, rounding the float64 result equals rounding the exact result."""
    (a,) = readers(machine, inst, "f32", ftz)
    put, function = writer(machine, inst, "f32", ftz), UNARY[inst.op[0]]
    return lambda: put(function(a().astype(F64)).astype(F32))


@instruction("sqrt", "rcp", form=r"\.rn\.f64")
def unary_f64(machine: Machine, inst: Instruction) -> Step:
    (a,) = readers(machine, inst, "f64", None)
    put, function = machine.writer(inst.args[0], "f64"), UNARY[inst.op[0]]
    return lambda: put(function(a()))


TESTS: dict[str, Callable[[Array], Array]] = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda x: ~np.isnan(x),
    "notanumber": np.isnan,
    "normal": lambda x: np.isfinite(x) & (np.abs(x) >= np.finfo(x.dtype).tiny),
    "subnormal": lambda x: (x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny),
}


@instruction("testp", form=rf"\.(?P<test>{'|'.join(TESTS)})\.(?P<kind>f32|f64)")
def test_property(machine: Machine, inst: Instruction, test: str, kind: str) -> Step:
    (a,) = readers(machine, inst, kind, None)
    put, function = machine.writer(inst.args[0], "pred"), TESTS[test]
    return lambda: put(function(a()))
