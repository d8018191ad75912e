"""Atomic operations on global memory (PTX ISA 9.7.13).

Threads execute in order. Sums of floats, which depend on the order, are not modeled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.errors import Missing
from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.kernel import Instruction
from tools.ptx.types import DTYPES, Array

if TYPE_CHECKING:
    from tools.ptx.machine import Machine

ORDER = r"(\.(relaxed|acquire|release|acq_rel|cta|cluster|gpu|sys))*"
OPERATIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
FORM = (
    rf"{ORDER}\.global{ORDER}\.((?P<sum>add)\.(?P<of_sum>[us](32|64))"
    r"|(?P<end>min|max)\.(?P<of_end>[us](32|64))|(?P<bits>and|or|xor)\.(?P<of_bits>b(32|64)))"
)


@instruction("atom", "red", form=FORM)
def update(machine: Machine, inst: Instruction, **groups: str | None) -> Step:
    operation = OPERATIONS[groups["sum"] or groups["end"] or groups["bits"] or ""]
    kind = groups["of_sum"] or groups["of_end"] or groups["of_bits"] or ""
    operands = inst.args if inst.op[0] == "red" else inst.args[1:]
    if len(operands) != 2:
        raise Missing(inst.text)
    address, value = machine.address(operands[0]), machine.read_all(operands[1], kind)
    put = None
    if inst.op[0] == "atom" and machine.kernel.uses(inst.args[0]) > 1:
        put = machine.writer(inst.args[0], kind)

    def step() -> None:
        threads, addresses = _active(machine, address())
        values = value()[threads]
        if put is None:
            _update_all(machine, addresses, values, operation, inst.text)
            return
        old = np.zeros(machine.count, DTYPES[kind])
        for turn in _turns(addresses):
            (before,) = machine.memory.load(addresses[turn], DTYPES[kind], 1, inst.text)
            after = operation(before, values[turn])
            machine.memory.store(addresses[turn], [after], inst.text)
            old[threads[turn]] = before
        put(old)

    return step


def _update_all(
    machine: Machine, addresses: Array, values: Array, operation: np.ufunc, text: str
) -> None:
    """Without the previous value as a result."""
    size = values.dtype.itemsize
    for piece, chosen, offsets in machine.memory.groups_to_write(addresses, size, text):
        skip, cells = piece.rows(values.dtype, 1)
        operation.at(cells, (offsets - skip) // size, values if chosen is None else values[chosen])


@instruction("atom", form=rf"{ORDER}\.global{ORDER}\.(?P<operation>exch|cas)\.(?P<kind>b(32|64))")
def exchange(machine: Machine, inst: Instruction, operation: str, kind: str) -> Step:
    """Stores the last operand; with .cas only if the previous value is the operand before it."""
    if len(inst.args) != (3 if operation == "exch" else 4):
        raise Missing(inst.text)
    address, put = machine.address(inst.args[1]), machine.writer(inst.args[0], kind)
    expected, new = machine.read_all(inst.args[-2 if operation == "cas" else -1], kind), None
    new = machine.read_all(inst.args[-1], kind)
    dtype = DTYPES[kind]

    def step() -> None:
        threads, addresses = _active(machine, address())
        compared, values = expected()[threads], new()[threads]
        old = np.zeros(machine.count, dtype)
        for turn in _turns(addresses):
            (before,) = machine.memory.load(addresses[turn], dtype, 1, inst.text)
            after = values[turn]
            if operation == "cas":
                after = np.where(before == compared[turn], after, before)
            machine.memory.store(addresses[turn], [after], inst.text)
            old[threads[turn]] = before
        put(old)

    return step


def _active(machine: Machine, addresses: Array) -> tuple[Array, Array]:
    """The indices of the running threads, and their addresses."""
    mask = machine.mask
    threads = np.arange(machine.count) if mask is None else np.nonzero(mask)[0]
    return threads, machine.spread(addresses)[threads]


def _turns(addresses: Array) -> list[Array]:
    """The accesses in rounds without repeated addresses."""
    order = np.argsort(addresses, kind="stable")
    ordered = addresses[order]
    first = np.searchsorted(ordered, ordered, "left")
    turn = np.arange(len(order)) - first
    return [order[turn == k] for k in range(int(turn.max()) + 1)]
