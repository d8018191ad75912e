"""Comparison and selection (PTX ISA 9.7.6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.errors import Missing
from tools.ptx.instructions.bits import LOGIC
from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.kernel import Instruction
from tools.ptx.numbers import flush, widen_bf16
from tools.ptx.types import Array

if TYPE_CHECKING:
    from tools.ptx.machine import Machine

Comparison = Callable[[Array, Array], Array]

ORDERED: dict[str, Comparison] = {
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
"""For floats: false if an operand is NaN, except for the last."""

UNORDERED: dict[str, Comparison] = {
    "neu": np.not_equal,
    "equ": lambda a, b: ~ORDERED["ne"](a, b),
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
}
"""For floats: true if an operand is NaN."""

INTEGERS: dict[str, Comparison] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}

SIGNS = r"eq|ne|lt|le|gt|ge"
FORM = rf"""\.(?P<compare>({SIGNS})u?|num|nan|lo|ls|hi|hs)(\.(?P<logic>and|or|xor))?
(?P<ftz>\.ftz)?\.(?P<kind>[bus](16|32|64)|f16|bf16|f32|f64)""".replace("\n", "")


def comparison(
    machine: Machine, inst: Instruction, compare: str, kind: str, ftz: str | None
) -> Callable[[], Array]:
    """A function that compares an instruction's second and third operand."""
    a, b = machine.read(inst.args[1], kind), machine.read(inst.args[2], kind)
    if kind[0] == "f" or kind == "bf16":
        table = ORDERED | UNORDERED
    elif kind[0] == "b":
        table = {name: INTEGERS[name] for name in ("eq", "ne")}
    else:
        unsigned = ("lo", "ls", "hi", "hs")
        table = {n: f for n, f in INTEGERS.items() if kind[0] == "u" or n not in unsigned}
    if compare not in table or (ftz and kind != "f32"):
        raise Missing(inst.text)
    function = table[compare]
    if ftz:
        return lambda: function(flush(a()), flush(b()))
    if kind == "bf16":
        return lambda: function(widen_bf16(a()), widen_bf16(b()))
    return lambda: function(a(), b())


@instruction("setp", form=FORM)
def set_predicate(
    machine: Machine, inst: Instruction, compare: str, logic: str | None, ftz: str | None, kind: str
) -> Step:
    """``p|q``: q is the complement of the comparison, combined with the third predicate like p."""
    compared = comparison(machine, inst, compare, kind, ftz)
    names = inst.args[0].split("|")
    puts = [machine.writer(name.strip(), "pred") for name in names]
    if len(inst.args) != (4 if logic else 3):
        raise Missing(inst.text)
    if logic:
        operand = inst.args[3]
        third = machine.read(operand.lstrip("!"), "pred")
        negated, combine = operand.startswith("!"), LOGIC[logic]

    def step() -> None:
        found = compared()
        results = (found, ~found)[: len(puts)]
        for put, result in zip(puts, results, strict=True):
            put(combine(result, third() ^ negated) if logic else result)

    if len(puts) == 1 and not logic:
        only = puts[0]
        return lambda: only(compared())
    return step


@instruction(
    "set",
    form=rf"\.(?P<compare>({SIGNS})u?|num|nan|lo|ls|hi|hs)(?P<ftz>\.ftz)?"
    r"\.(?P<to>[us]32|f32)\.(?P<kind>[bus](16|32|64)|f32|f64)",
)
def set_value(
    machine: Machine, inst: Instruction, compare: str, ftz: str | None, to: str, kind: str
) -> Step:
    """All ones, or 1.0, if the comparison is true."""
    compared, put = comparison(machine, inst, compare, kind, ftz), machine.writer(inst.args[0], to)
    if to == "f32":
        return lambda: put(compared().astype(np.float32))
    dtype = np.uint32 if to == "u32" else np.int32
    return lambda: put(np.negative(compared().astype(np.int32)).view(dtype))


@instruction("selp", form=r"\.(?P<kind>[bus](16|32|64)|f32|f64)")
def select(machine: Machine, inst: Instruction, kind: str) -> Step:
    kind = "b" + kind[1:]
    a, b = machine.read(inst.args[1], kind), machine.read(inst.args[2], kind)
    chosen, put = machine.read(inst.args[3], "pred"), machine.writer(inst.args[0], kind)
    return lambda: put(np.where(chosen(), a(), b()))


@instruction("slct", form=r"(?P<ftz>\.ftz)?\.(?P<kind>[bus](16|32|64)|f32|f64)\.(?P<by>s32|f32)")
def select_by_sign(
    machine: Machine, inst: Instruction, ftz: str | None, kind: str, by: str
) -> Step:
    """The first if the third operand is at least zero (with .ftz also if -0 or subnormal)."""
    kind = "b" + kind[1:]
    a, b = machine.read(inst.args[1], kind), machine.read(inst.args[2], kind)
    sign, put = machine.read(inst.args[3], by), machine.writer(inst.args[0], kind)

    def step() -> None:
        value = flush(sign()) if ftz else sign()
        put(np.where(value >= 0, a(), b()))

    return step
