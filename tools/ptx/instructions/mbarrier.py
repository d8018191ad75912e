"""mbarrier objects, at which threads wait for asynchronous products (PTX ISA 9.7.13.15).

The layout of an object in shared memory is that of this module: a mark, the expected count per
phase, the pending count, and the parity of the incomplete phase.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tools.ptx.errors import Fault
from tools.ptx.instructions.proxy import Products
from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.kernel import Instruction
from tools.ptx.types import UNSIGNED, Array

if TYPE_CHECKING:
    from tools.ptx.machine import Machine

MARK = 0x6D62
SIZE = 8


class State(NamedTuple):
    """Of an object."""

    expected: int
    pending: int
    parity: int

    @classmethod
    def of(cls, bits: int) -> State:
        """Decode; Fault unless it is such an object."""
        if bits >> 48 != MARK:
            raise Fault("no mbarrier was initialized there")
        return cls(bits >> 24 & 0xFFFFF, bits >> 4 & 0xFFFFF, bits & 1)

    @property
    def bits(self) -> int:
        """Encoded."""
        return MARK << 48 | self.expected << 24 | self.pending << 4 | self.parity

    def arrived(self) -> State:
        """After an arrival."""
        if self.pending > 1:
            return self._replace(pending=self.pending - 1)
        return State(self.expected, self.expected, 1 - self.parity)


class Arrivals:
    """Which products end before a phase completes, for all mbarriers of the running blocks.

    A part of the machine.
    """

    def __init__(self, machine: Machine) -> None:
        self.shared = machine.shared
        self.of_position: dict[int, tuple[Products, int, int]] = {}

    def state(self, position: int) -> State:
        """The entry of the object at a position in ``Shared.data``."""
        return State.of(int(self.shared.data.view(np.uint64)[position // SIZE]))

    def commit(self, position: int, products: Products, block: int) -> None:
        """All products that a block has issued will end, then arrive."""
        state = self.state(position).arrived()
        self.shared.data.view(np.uint64)[position // SIZE] = state.bits
        products.committed[0, block] = products.issued[0, block]
        self.of_position[position] = products, block, int(products.committed[0, block])

    def waited(self, position: int, warps: Array) -> None:
        """Warps of the block have waited for the arrivals."""
        if position in self.of_position:
            products, block, number = self.of_position[position]
            known = products.known[0, block]
            known[warps] = np.maximum(known[warps], number)
            products.waited[0, block] = max(products.waited[0, block], number)

    def finish(self) -> None:
        """Nothing to do."""


def accesses(machine: Machine, addresses: Array) -> tuple[Array, Array, Array, Array]:
    """The running threads, and the position, block and warp of the 8 bytes that each addresses."""
    threads = np.arange(machine.count) if machine.mask is None else np.nonzero(machine.mask)[0]
    blocks, warps = machine.block[threads], machine.warp[threads]
    offsets = machine.spread(addresses)[threads]
    return threads, machine.shared.positions(offsets, blocks, SIZE, "an mbarrier"), blocks, warps


@instruction("mbarrier", form=r"\.init(\.shared(::cta)?)\.b64")
def init(machine: Machine, inst: Instruction) -> Step:
    """Initialize an object that expects this many arrivals."""
    address, count = machine.address(inst.args[0]), machine.read_all(inst.args[1], "u32")

    def act() -> None:
        threads, at, blocks, warps = accesses(machine, address())
        bits = [State(int(n), int(n), 0).bits for n in count()[threads]]
        machine.shared.store(at, blocks, warps, [np.array(bits, np.uint64)], inst.text)

    return act


@instruction("mbarrier", form=r"\.inval(\.shared(::cta)?)\.b64")
def inval(machine: Machine, inst: Instruction) -> Step:
    """The object becomes uninitialized memory."""
    address, arrivals = machine.address(inst.args[0]), machine.part(Arrivals)

    def act() -> None:
        _, at, blocks, warps = accesses(machine, address())
        for position in at:
            arrivals().state(int(position))
            arrivals().of_position.pop(int(position), None)
        machine.shared.store(at, blocks, warps, [np.zeros(len(at), np.uint64)], inst.text)

    return act


@instruction("mbarrier", form=r"\.try_wait\.parity(\.shared(::cta)?)\.b64", waits=True)
def try_wait(machine: Machine, inst: Instruction) -> tuple[Any, Step]:
    """True if the phase with this parity is complete; threads are suspended until it is."""
    address, parity = machine.address(inst.args[1]), machine.read_all(inst.args[2], "u32")
    write, arrivals = machine.writer(inst.args[0], "pred"), machine.part(Arrivals)

    def ready() -> Array:
        threads, at, blocks, warps = accesses(machine, address())
        machine.shared.load(at, blocks, warps, UNSIGNED[SIZE], 1, inst.text)
        found = {int(p): arrivals().state(int(p)).parity for p in np.unique(at)}
        done = np.zeros(machine.count, bool)
        done[threads] = np.array([found[int(p)] for p in at]) != (parity()[threads] & 1)
        return done

    def act() -> None:
        _, at, _, warps = accesses(machine, address())
        for position in np.unique(at):
            arrivals().waited(int(position), np.unique(warps[at == position]))
        write(np.ones(machine.count, bool))

    return ready, act


@instruction("elect", form=r"\.sync", together="warp")
def elect(machine: Machine, inst: Instruction) -> Step:
    """One lane per warp. PTX does not specify which; here it is the last."""
    lane, _, chosen = inst.args[0].partition("|")
    write_lane, write_chosen = machine.writer(lane, "u32"), machine.writer(chosen, "pred")
    if machine.constant_bits(inst.args[1], "u32") != 0xFFFFFFFF:
        raise Fault("a mask of part of a warp")

    def act() -> None:
        write_lane(np.full(machine.count, 31, np.uint32))
        write_chosen(machine.thread % 32 == 31)

    return act
