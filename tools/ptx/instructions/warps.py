"""Warp- and block-wide instructions (PTX ISA 9.7.9, 9.7.13): shuffles, votes, barriers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.errors import Fault, Missing
from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.kernel import Instruction
from tools.ptx.numbers import extremum
from tools.ptx.types import DTYPES, Array

if TYPE_CHECKING:
    from tools.ptx.machine import Machine

WARP = 32
BARRIERS = 16
"""Of a block, by number."""


def whole_warp(machine: Machine, inst: Instruction, operand: str) -> None:
    """Raise Missing unless the mask is a constant with all bits set: the whole warp."""
    if operand.startswith("%") or machine.constant_bits(operand, "b32") != 0xFFFFFFFF:
        raise Missing(inst.text)


@instruction("shfl", form=r"\.sync\.(?P<mode>up|down|bfly|idx)\.b32", together="warp")
def shuffle(machine: Machine, inst: Instruction, mode: str) -> Step:
    """The value of another lane, or the thread's own value if that lane is outside its segment."""
    names = [name.strip() for name in inst.args[0].split("|")]
    put = machine.writer(names[0], "b32")
    put_inside = machine.writer(names[1], "pred") if len(names) > 1 else None
    a, b, c = (machine.read_all(operand, "b32") for operand in inst.args[1:4])
    whole_warp(machine, inst, inst.args[4])

    def step() -> None:
        lane = machine.thread % WARP
        distance, bounds = b().astype(np.int64) & 31, c().astype(np.int64)
        clamp, segment = bounds & 31, bounds >> 8 & 31
        first = lane & segment
        last = first | clamp & ~segment
        source = {
            "up": lambda: lane - distance,
            "down": lambda: lane + distance,
            "bfly": lambda: lane ^ distance,
            "idx": lambda: first | distance & ~segment,
        }[mode]()
        inside = source >= last if mode == "up" else source <= last
        other = np.arange(machine.count) - lane + np.where(inside, source, lane)
        put(a()[other])
        if put_inside:
            put_inside(inside)

    return step


CANONICAL_NAN = np.uint32(0x7FFFFFFF).view(np.float32)
REDUCTIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


@instruction(
    "redux",
    form=r"\.sync\.(?P<operation>(add|min|max)(?=\.[us])|(and|or|xor)(?=\.b))\.(?P<kind>[usb]32)",
    together="warp",
)
def reduce(machine: Machine, inst: Instruction, operation: str, kind: str) -> Step:
    a, put = machine.read_all(inst.args[1], kind), machine.writer(inst.args[0], kind)
    function, members = REDUCTIONS[operation], _member_mask(machine, inst, inst.args[2])

    def step() -> None:
        members()
        values = a().reshape(-1, WARP)
        put(np.repeat(function.reduce(values, axis=1, dtype=DTYPES[kind]), WARP))

    return step


@instruction(
    "redux",
    form=r"\.sync\.(?P<operation>min|max)(?P<absolute>\.abs)?(?P<nan>\.NaN)?\.f32",
    together="warp",
)
def reduce_floats(
    machine: Machine, inst: Instruction, operation: str, absolute: str | None, nan: str | None
) -> Step:
    """NaN if all are, with .NaN if any is; +0 is larger than -0."""
    a, put = machine.read_all(inst.args[1], "f32"), machine.writer(inst.args[0], "f32")
    members, largest = _member_mask(machine, inst, inst.args[2]), operation == "max"

    def step() -> None:
        members()
        values = (np.abs(a()) if absolute else a()).reshape(-1, WARP)
        found = values[:, 0]
        for lane in range(1, WARP):
            found = extremum(found, values[:, lane], largest)
        lost = np.isnan(values).any(axis=1) if nan else np.isnan(found)
        put(np.repeat(np.where(lost, CANONICAL_NAN, found), WARP))

    return step


def _member_mask(machine: Machine, inst: Instruction, operand: str) -> Step:
    """A function that raises unless the mask, possibly in a register, is that of a whole warp."""
    read = machine.read(operand, "b32")

    def check() -> None:
        if (machine.running(read()) != np.uint32(0xFFFFFFFF)).any():
            raise Missing(f"a part of a warp: {inst.text}")

    return check


@instruction("vote", form=r"\.sync\.(?P<mode>all|any|uni)\.pred", together="warp")
def vote(machine: Machine, inst: Instruction, mode: str) -> Step:
    chosen, put = _vote_operand(machine, inst), machine.writer(inst.args[0], "pred")

    def step() -> None:
        values = chosen().reshape(-1, WARP)
        every, some = values.all(axis=1), values.any(axis=1)
        put(np.repeat({"all": every, "any": some, "uni": every | ~some}[mode], WARP))

    return step


@instruction("vote", form=r"\.sync\.ballot\.b32", together="warp")
def ballot(machine: Machine, inst: Instruction) -> Step:
    chosen, put = _vote_operand(machine, inst), machine.writer(inst.args[0], "b32")
    return lambda: put(np.repeat(lanes_as_bits(chosen()), WARP))


def _vote_operand(machine: Machine, inst: Instruction) -> Callable[[], Array]:
    operand = inst.args[1]
    whole_warp(machine, inst, inst.args[2])
    read, negated = machine.read_all(operand.lstrip("!"), "pred"), operand.startswith("!")
    return lambda: read() ^ negated


def lanes_as_bits(values: Array) -> Array:
    """One word per warp, with one bit per lane."""
    packed = np.packbits(values.reshape(-1, WARP), axis=1, bitorder="little")
    return packed.view(np.uint32).reshape(-1)


@instruction("activemask", form=r"\.b32")
def active_mask(machine: Machine, inst: Instruction) -> Step:
    put = machine.writer(inst.args[0], "b32")

    def step() -> None:
        mask = machine.mask
        if machine.size % WARP:
            raise Missing(f"a warp that is not whole: {inst.text}")
        everyone = np.ones(machine.count, np.bool_)
        put(np.repeat(lanes_as_bits(everyone if mask is None else mask), WARP))

    return step


@instruction("bar", form=r"(\.cta)?\.sync", together="block")
@instruction("barrier", form=r"(\.cta)?\.sync(\.aligned)?", together="block")
def barrier(machine: Machine, inst: Instruction) -> Step:
    """A barrier of the whole block; a number of threads is allowed if it is the block's."""
    which = _which_barrier(machine, inst, inst.args[0])
    number = machine.read(inst.args[1], "u32") if len(inst.args) > 1 else None

    def step() -> None:
        which()
        if number is not None and (machine.running(number()) != machine.size).any():
            raise Missing(f"a barrier of a part of the block: {inst.text}")
        pass_barrier(machine)

    return step


def _which_barrier(machine: Machine, inst: Instruction, operand: str) -> Step:
    """A function that raises Fault for a barrier that does not exist or differs within a block."""
    read = machine.read_all(operand, "u32")

    def check() -> None:
        numbers = machine.running(read()).reshape(-1, machine.size)
        if (numbers >= BARRIERS).any():
            raise Fault(f"a block has {BARRIERS} barriers: {inst.text}")
        if (numbers != numbers[:, :1]).any():
            raise Fault(f"threads of a block wait at different barriers: {inst.text}")

    return check


def pass_barrier(machine: Machine) -> None:
    """The running blocks have passed a barrier."""
    if machine.mask is None:
        machine.shared.barrier()
    else:
        machine.shared.barrier(machine.mask[:: machine.size])


@instruction("bar", form=r"(\.cta)?\.red\.(?P<mode>and|or)\.pred", together="block")
@instruction("barrier", form=r"(\.cta)?\.red(\.aligned)?\.(?P<mode>and|or)\.pred", together="block")
def barrier_vote(machine: Machine, inst: Instruction, mode: str) -> Step:
    """A barrier that also reduces a predicate over the block's threads (all or any)."""
    if len(inst.args) != 3:
        raise Missing(inst.text)
    which, operand = _which_barrier(machine, inst, inst.args[1]), inst.args[2]
    read, negated = machine.read_all(operand.lstrip("!"), "pred"), operand.startswith("!")
    put = machine.writer(inst.args[0], "pred")
    function = np.logical_and if mode == "and" else np.logical_or

    def step() -> None:
        which()
        values = (read() ^ negated).reshape(-1, machine.size)
        put(np.repeat(function.reduce(values, axis=1), machine.size))
        pass_barrier(machine)

    return step


@instruction("bar", form=r"\.warp\.sync", together="warp")
def warp_barrier(machine: Machine, inst: Instruction) -> Step:
    """Threads of a warp run in lockstep: this only waits for all of them."""
    whole_warp(machine, inst, inst.args[0])
    return lambda: None
