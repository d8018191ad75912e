"""Loads and stores (PTX ISA 9.7.9.8 and 9.7.9.12)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.errors import Fault, Missing
from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.kernel import Instruction, split
from tools.ptx.types import DTYPES, Array

if TYPE_CHECKING:
    from tools.ptx.machine import Machine

KIND = r"(\.v(?P<count>[248]))?\.(?P<kind>[bus](8|16|32|64)|f32|f64|b128)"
SCOPE = r"(cta|cluster|gpu|sys)"
HINTS = (
    r"(\.L1::(evict_(normal|unchanged|first|last)|no_allocate))?"
    r"(\.L2::(evict_(normal|first|last)|(64|128|256)B))*"
)
"""Caching modifiers, which do not affect results. ``.L2::cache_hint`` has an extra operand."""


@instruction(
    "ld",
    form=rf"(\.(weak|volatile|(relaxed|acquire)\.{SCOPE}))?"
    rf"\.(?P<space>param|global|shared(::cta)?)(\.(ca|cg|cs|lu|cv))?(\.nc)?{HINTS}{KIND}",
)
def load(machine: Machine, inst: Instruction, space: str, count: str | None, kind: str) -> Step:
    if "nc" in inst.op and space != "global":
        raise Missing(inst.text)
    names = _elements(inst, inst.args[0], int(count or 1))
    puts = [machine.writer(name, kind) for name in names]
    address, dtype = machine.address(inst.args[1]), DTYPES[kind]
    if space == "param":
        return _load_parameter(machine, inst, puts, address, dtype)
    if space == "global":
        return _load_global(machine, inst, puts, address, dtype)
    return _load_shared(machine, inst, puts, address, dtype)


def _elements(inst: Instruction, operand: str, count: int) -> list[str]:
    """The registers of an operand; a single one may be in braces."""
    names = split(operand[1:-1]) if operand.startswith("{") else [operand]
    if len(names) != count or len(inst.args) != 2:
        raise Missing(inst.text)
    return names


Writers = list[Callable[[Array], None]]


def _load_parameter(
    machine: Machine,
    inst: Instruction,
    puts: Writers,
    address: Callable[[], Array],
    dtype: np.dtype,
) -> Step:
    size = dtype.itemsize

    def step() -> None:
        offsets, mask = address(), machine.mask
        partial = mask is not None and len(offsets) > 1
        active = machine.running(offsets)
        space, total = machine.parameters, size * len(puts)
        if (active % np.uint64(total)).any():
            raise Fault(f"misaligned access to parameters: {inst.text}")
        if int(active.max()) + total > len(space):
            raise Fault(f"access outside of the parameters: {inst.text}")
        bytes_of = active.astype(np.int64)[:, None] + np.arange(total)
        values = space[bytes_of].view(dtype)
        for k, put in enumerate(puts):
            value = np.ascontiguousarray(values[:, k])
            put(_expanded(value, mask) if partial else value)

    return step


def _load_global(
    machine: Machine,
    inst: Instruction,
    puts: Writers,
    address: Callable[[], Array],
    dtype: np.dtype,
) -> Step:
    cached = "nc" in inst.op

    def step() -> None:
        addresses, mask = address(), machine.mask
        # An address shared by all threads is read once.
        partial = mask is not None and len(addresses) > 1
        running = machine.running(addresses)
        values = machine.memory.load(running, dtype, len(puts), inst.text, cached)
        for put, value in zip(puts, values, strict=True):
            put(_expanded(value, mask) if partial else value)

    return step


def _expanded(values: Array, mask: Array | None) -> Array:
    """The values of the threads of `mask`, among those of all threads."""
    assert mask is not None
    out = np.zeros(len(mask), values.dtype)
    out[mask] = values
    return out


def _load_shared(
    machine: Machine,
    inst: Instruction,
    puts: Writers,
    address: Callable[[], Array],
    dtype: np.dtype,
) -> Step:
    size = dtype.itemsize * len(puts)

    def step() -> None:
        mask, shared = machine.mask, machine.shared
        operands = (machine.spread(address()), machine.block, machine.warp)
        offsets, block, warp = (machine.running(operand) for operand in operands)
        at = shared.positions(offsets, block, size, inst.text)
        values = shared.load(at, block, warp, dtype, len(puts), inst.text)
        for put, value in zip(puts, values, strict=True):
            put(value if mask is None else _expanded(value, mask))

    return step


@instruction(
    "st",
    form=rf"(\.(weak|volatile|(relaxed|release)\.{SCOPE}))?"
    rf"\.(?P<space>global|shared(::cta)?)(\.(wb|cg|cs|wt))?{HINTS}{KIND}",
)
def store(machine: Machine, inst: Instruction, space: str, count: str | None, kind: str) -> Step:
    names = _elements(inst, inst.args[1], int(count or 1))
    reads = [machine.read_all(name, kind) for name in names]
    address = machine.address(inst.args[0])

    def operands() -> tuple[Array, list[Array]]:
        addresses = machine.running(machine.spread(address()))
        return addresses, [machine.running(read()) for read in reads]

    def to_global() -> None:
        machine.memory.store(*operands(), inst.text)

    def to_shared() -> None:
        offsets, values = operands()
        block, warp = machine.running(machine.block), machine.running(machine.warp)
        size = values[0].dtype.itemsize * len(values)
        at = machine.shared.positions(offsets, block, size, inst.text)
        machine.shared.store(at, block, warp, values, inst.text)

    return to_global if space == "global" else to_shared
