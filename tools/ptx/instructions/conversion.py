"""Conversions (PTX ISA 9.7.9.21)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.errors import Missing
from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.kernel import Instruction
from tools.ptx.numbers import F64, U32, add_to_odd, flush, narrow, saturate, widen_bf16
from tools.ptx.types import DTYPES, Array, size_of

if TYPE_CHECKING:
    from tools.ptx.machine import Machine

INTEGER = r"[us](8|16|32|64)"
FLOAT = r"f16|bf16|f32|f64"
TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
LARGEST = {"f16": 65504.0, "bf16": 2.0**128 - 2.0**120, "f32": 2.0**128 - 2.0**104}
LARGEST["tf32"] = 2.0**128 - 2.0**117


@instruction("cvt", form=rf"(?P<sat>\.sat)?\.(?P<to>{INTEGER})\.(?P<source>{INTEGER})")
def integer_to_integer(
    machine: Machine, inst: Instruction, sat: str | None, to: str, source: str
) -> Step:
    """Without .sat, upper bits are dropped, or filled with the sign of the source."""
    a, put = machine.read(inst.args[1], source), machine.writer(inst.args[0], to)
    dtype = DTYPES[to]
    if not sat:
        return lambda: put(a().astype(dtype))
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    ends = np.iinfo(DTYPES[source])
    low, high = max(low, ends.min), min(high, ends.max)
    return lambda: put(np.clip(a(), low, high).astype(dtype))


@instruction(
    "cvt",
    form=rf"\.(?P<rounding>rni|rzi|rmi|rpi)(?P<ftz>\.ftz)?(\.sat)?"
    rf"\.(?P<to>{INTEGER})\.(?P<source>{FLOAT})",
)
def float_to_integer(
    machine: Machine, inst: Instruction, rounding: str, ftz: str | None, to: str, source: str
) -> Step:
    """The nearest integer if out of range; NaN is zero or, for 64 bits, only the upper bit."""
    a, put = _numbers(machine, inst, inst.args[1], source, ftz), machine.writer(inst.args[0], to)
    dtype, integral = DTYPES[to], TO_INTEGRAL[rounding]
    ends, bits = np.iinfo(dtype), 8 * dtype.itemsize
    wide = bits == 64 or source == "f64"
    of_nan = (1 << (bits - 1)) if wide else 0
    of_nan = np.array([of_nan], f"u{dtype.itemsize}").view(dtype)

    def step() -> None:
        value = integral(a())
        nan = np.isnan(value)
        # 2.0**bits is beyond the largest 64-bit integer, which no float equals.
        above, below = value >= float(ends.max), value <= float(ends.min)
        inside = np.where(nan | above | below, 0.0, value).astype(dtype)
        found = np.where(above, dtype.type(ends.max), inside)
        found = np.where(below, dtype.type(ends.min), found)
        put(np.where(nan, of_nan, found) if wide else found)

    return step


@instruction("cvt", form=rf"\.(?P<rounding>rn|rz|rm|rp)\.(?P<to>{FLOAT})\.(?P<source>{INTEGER})")
def integer_to_float(
    machine: Machine, inst: Instruction, rounding: str, to: str, source: str
) -> Step:
    a, put = machine.read(inst.args[1], source), machine.writer(inst.args[0], to)
    dtype = DTYPES[to]
    small = size_of(source) <= 4
    if (rounding == "rn" and to in ("f32", "f64")) or (small and to == "f64"):
        return lambda: put(a().astype(dtype))
    if to == "f64":
        raise Missing(inst.text)
    exact = (lambda: a().astype(F64)) if small else (lambda: _odd_f64(a()))
    return lambda: put(narrow(exact(), to, rounding))


def _odd_f64(values: Array) -> Array:
    """Integers of 64 bits as float64, rounded to odd."""
    low = values & values.dtype.type(0xFFFFFFFF)
    return add_to_odd((values - low).astype(F64), low.astype(F64))


def _numbers(
    machine: Machine, inst: Instruction, operand: str, kind: str, ftz: str | None
) -> Callable[[], Array]:
    """A function that returns the values of an operand as float64."""
    read = machine.read(operand, kind)
    if ftz and kind == "f32":
        return lambda: flush(read()).astype(F64)
    if ftz and kind != "f16":
        raise Missing(inst.text)
    if kind == "bf16":
        return lambda: widen_bf16(read()).astype(F64)
    return lambda: read().astype(F64)


@instruction("cvt", form=rf"(?P<ftz>\.ftz)?(?P<sat>\.sat)?\.(?P<to>f32|f64)\.(?P<source>{FLOAT})")
def widen(
    machine: Machine, inst: Instruction, ftz: str | None, sat: str | None, to: str, source: str
) -> Step:
    """To a format that represents every number of the source."""
    if size_of(source) > size_of(to):
        raise Missing(inst.text)
    a, put = machine.read(inst.args[1], source), machine.writer(inst.args[0], to)
    dtype = DTYPES[to]
    if source == "bf16" and not sat:
        return lambda: put(widen_bf16(a()).astype(dtype))
    if not ftz and not sat:
        return lambda: put(a().astype(dtype))
    numbers = _numbers(machine, inst, inst.args[1], source, ftz)
    return lambda: put((saturate(numbers()) if sat else numbers()).astype(dtype))


@instruction(
    "cvt",
    form=rf"\.(?P<rounding>rni|rzi|rmi|rpi)(?P<ftz>\.ftz)?(?P<sat>\.sat)?"
    rf"\.(?P<to>{FLOAT})\.(?P<source>{FLOAT})",
)
def to_integral(
    machine: Machine,
    inst: Instruction,
    rounding: str,
    ftz: str | None,
    sat: str | None,
    to: str,
    source: str,
) -> Step:
    """To an integer in the same format."""
    if to != source:
        raise Missing(inst.text)
    a, put = _numbers(machine, inst, inst.args[1], source, ftz), machine.writer(inst.args[0], to)
    integral, dtype = TO_INTEGRAL[rounding], DTYPES[to]

    def step() -> None:
        value = integral(a())
        value = saturate(value) if sat else value
        put(value.astype(F64) if to == "f64" else narrow(value, to).view(dtype))

    return step


@instruction(
    "cvt",
    form=r"\.(?P<rounding>rn|rz|rm|rp)(?P<ftz>\.ftz)?(?P<sat>\.sat)?"
    r"\.(?P<to>f16|f32)\.(?P<source>f32|f64)",
)
def narrow_float(
    machine: Machine,
    inst: Instruction,
    rounding: str,
    ftz: str | None,
    sat: str | None,
    to: str,
    source: str,
) -> Step:
    if size_of(to) >= size_of(source):
        raise Missing(inst.text)
    a, put = machine.read(inst.args[1], source), machine.writer(inst.args[0], to)

    def step() -> None:
        value = flush(a()) if ftz and source == "f32" else a()
        value = narrow(saturate(value) if sat else value, to, rounding)
        put(flush(value) if ftz and to == "f32" else value)

    return step


FINISH = r"(?P<relu>\.relu)?(?P<finite>\.satfinite)?"


@instruction("cvt", form=rf"\.(?P<rounding>rn|rz){FINISH}\.(?P<to>bf16)\.f32")
@instruction(
    "cvt",
    form=r"\.(?P<rounding>rn|rz)(?P<relu>\.relu)?(?P<finite>\.satfinite)"
    r"\.(?P<to>f16)\.f32",
)
@instruction(
    "cvt",
    form=r"\.(?P<rounding>rn|rz)(?P<relu>\.relu)(?P<finite>\.satfinite)?"
    r"\.(?P<to>f16)\.f32",
)
def narrow_to_half(
    machine: Machine,
    inst: Instruction,
    rounding: str,
    relu: str | None,
    finite: str | None,
    to: str,
) -> Step:
    a, put = machine.read(inst.args[1], "f32"), machine.writer(inst.args[0], "b16")
    return lambda: put(narrow(_finished(a(), relu, finite, to), to, rounding).view(np.uint16))


@instruction("cvt", form=rf"\.(?P<rounding>rn|rz){FINISH}\.(?P<to>f16x2|bf16x2)\.f32")
def narrow_to_pair(
    machine: Machine,
    inst: Instruction,
    rounding: str,
    relu: str | None,
    finite: str | None,
    to: str,
) -> Step:
    """The first operand goes into the upper half."""
    high, low = (machine.read(operand, "f32") for operand in inst.args[1:])
    put, half = machine.writer(inst.args[0], "b32"), to.removesuffix("x2")

    def bits(value: Array) -> Array:
        narrowed = narrow(_finished(value, relu, finite, half), half, rounding)
        return narrowed.view(np.uint16).astype(U32)

    return lambda: put(bits(high()) << np.uint32(16) | bits(low()))


@instruction("cvt", form=rf"\.(?P<rounding>rna|rn|rz){FINISH}\.tf32\.f32")
def narrow_to_tf32(
    machine: Machine, inst: Instruction, rounding: str, relu: str | None, finite: str | None
) -> Step:
    """float32 with 13 zero lower bits; .rna rounds ties away from zero."""
    a, put = machine.read(inst.args[1], "f32"), machine.writer(inst.args[0], "b32")

    def step() -> None:
        value = _finished(a(), relu, finite, "tf32")
        bits = value.view(U32)
        if rounding == "rna":
            added = np.uint32(0x1000)
        elif rounding == "rn":
            added = np.uint32(0xFFF) + (bits >> np.uint32(13) & np.uint32(1))
        else:
            added = np.uint32(0)
        rounded = bits + added & np.uint32(0xFFFFE000)
        put(np.where(np.isnan(value), np.uint32(0x7FFFFFFF), rounded))

    return step


def _finished(value: Array, relu: str | None, finite: str | None, to: str) -> Array:
    """Negative numbers become zero (.relu); others are clamped to the format's range."""
    if relu:
        value = np.where(value < 0, np.float32(0), value)
    if finite:
        last = np.float32(LARGEST[to])
        value = np.clip(value, -last, last)
    return value
