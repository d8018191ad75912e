"""tcgen05: products that accumulate in tensor memory, and loads and stores (PTX ISA 9.7.16).

A product is computed when it is issued. The run checks that its sums and factors are not used until
a thread has waited at the mbarrier of its commit. tcgen05.fence::* around a barrier between a store
and a product, which 9.7.16.6 requires, is not checked, because Triton's compiler omits it. This
does not show that its kernels work without these fences.

The registers of a load may be read without tcgen05.wait::ld, which Triton 3.9 relies on: true
register dependencies are respected, and imply no order of memory accesses (9.7.16.6.4.5). Only
after the wait may the registers or the cells be overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tools.ptx.errors import Fault, Missing
from tools.ptx.instructions import flow, fragments
from tools.ptx.instructions.descriptors import Descriptor, Form
from tools.ptx.instructions.matrix import vector
from tools.ptx.instructions.mbarrier import Arrivals, accesses
from tools.ptx.instructions.proxy import Proxy
from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.instructions.tensor_memory import TensorMemory
from tools.ptx.kernel import Instruction
from tools.ptx.types import Array

if TYPE_CHECKING:
    from tools.ptx.machine import Machine

GROUP = r"\.cta_group::1"
SHAPE = r"\.sync\.aligned\.(?P<shape>32x32b|16x32bx2)\.x(?P<count>1|2|4|8|16|32|64|128)\.b32"
DEPTH = 16
"""Terms per sum for 16-bit factors."""


class Warp(NamedTuple):
    """A warp that runs an instruction: its first thread, its block and its index in the block."""

    first: int
    block: int
    warp: int


def warps(machine: Machine) -> list[Warp]:
    """The running warps."""
    firsts = np.arange(0, machine.count, 32)
    if machine.mask is not None:
        firsts = firsts[machine.mask[firsts]]
    return [Warp(int(f), int(machine.block[f]), int(machine.warp[f])) for f in firsts]


# ---- allocation ------------------------------------------------------------------------------


@instruction("tcgen05", form=rf"\.alloc{GROUP}\.sync\.aligned\.shared::cta\.b32", together="warp")
def alloc(machine: Machine, inst: Instruction) -> Step:
    """Allocate columns and write their address to shared memory."""
    memory, address = machine.part(TensorMemory), machine.address(inst.args[0])
    columns = machine.read_all(inst.args[1], "u32")

    def act() -> None:
        for first, block, warp in warps(machine):
            given = memory().allocate(block, int(columns()[first]))
            where, who = np.array([block]), np.array([warp])
            offset = machine.spread(address())[first : first + 1]
            at = machine.shared.positions(offset, where, 4, inst.text)
            machine.shared.store(at, where, who, [np.array([given], np.uint32)], inst.text)

    return act


@instruction("tcgen05", form=rf"\.dealloc{GROUP}\.sync\.aligned\.b32", together="warp")
def dealloc(machine: Machine, inst: Instruction) -> Step:
    """Free columns; all must be freed before a kernel ends."""
    memory = machine.part(TensorMemory)
    address, columns = (machine.read_all(operand, "u32") for operand in inst.args)

    def act() -> None:
        for first, block, warp in warps(machine):
            given = int(address()[first]), int(columns()[first])
            memory().deallocate(block, warp, *given)

    return act


@instruction("tcgen05", form=rf"\.relinquish_alloc_permit{GROUP}\.sync\.aligned", together="warp")
def relinquish(machine: Machine, inst: Instruction) -> Step:
    """The block will not allocate again."""
    memory = machine.part(TensorMemory)

    def act() -> None:
        for _, block, _ in warps(machine):
            memory().relinquished[block] = True

    return act


# ---- loads and stores ------------------------------------------------------------------------


def cells(
    machine: Machine, inst: Instruction, address: str, shape: str, count: int, offset: int
) -> Callable[[Warp], Array]:
    """A function that returns the cells [register, lane] that a warp accesses.

    32x32b: lane by lane, one column per register. 16x32bx2: the upper half of the warp accesses the
    same 16 lanes, `offset` columns further.
    """
    memory, read = machine.part(TensorMemory), machine.address(address)
    lane, register = np.arange(32)[None, :], np.arange(count)[:, None]
    rows = lane if shape == "32x32b" else lane % 16
    columns = register + (0 * lane if shape == "32x32b" else lane // 16 * offset)

    def found(one: Warp) -> Array:
        given = machine.spread(read())[one.first : one.first + 32]
        base = int(given[0])
        if (given != base).any():
            raise Fault("the lanes of a warp give several addresses")
        lanes = (base >> 16) + rows
        if int(lanes.min()) // 32 != one.warp % 4 or int(lanes.max()) // 32 != one.warp % 4:
            raise Fault("a warp reaches the 32 lanes of its place in the warpgroup")
        return memory().positions(one.block, lanes, (base & 0xFFFF) + columns)

    return found


def _half(shape: str, operands: list[str], inst: Instruction) -> int:
    """The distance between the halves of 16x32bx2, an operand that only this shape has."""
    if len(operands) != (shape == "16x32bx2"):
        raise Missing("its operands")
    return int(operands[0], 0) if operands else 0


@instruction("tcgen05", form=r"\.ld" + SHAPE, together="warp")
def load(machine: Machine, inst: Instruction, shape: str, count: str) -> Step:
    """Load registers from tensor memory; see the module's docstring for tcgen05.wait::ld."""
    names = vector(inst.args[0])
    if len(names) != int(count):
        raise Missing("its operands")
    flow.refuse_overwriting(machine.kernel, inst, names, _is("wait::ld"))
    memory, writers = machine.part(TensorMemory), [machine.writer(name, "b32") for name in names]
    found = cells(machine, inst, inst.args[1], shape, int(count), _half(shape, inst.args[2:], inst))

    def act() -> None:
        words = np.zeros((int(count), machine.count), np.uint32)
        for one in warps(machine):
            words[:, one.first : one.first + 32] = memory().load(found(one), one.block, one.warp)
        for write, values in zip(writers, words, strict=True):
            write(values)

    return act


@instruction("tcgen05", form=r"\.st" + SHAPE, together="warp")
def store(machine: Machine, inst: Instruction, shape: str, count: str) -> Step:
    """Store registers to tensor memory; visible after tcgen05.wait::st."""
    *operands, values = inst.args
    reads = [machine.read_all(name, "b32") for name in vector(values)]
    if len(reads) != int(count):
        raise Missing("its operands")
    memory = machine.part(TensorMemory)
    found = cells(machine, inst, operands[0], shape, int(count), _half(shape, operands[1:], inst))

    def act() -> None:
        words = np.stack([read() for read in reads])
        for one in warps(machine):
            given = words[:, one.first : one.first + 32]
            memory().store(found(one), one.block, one.warp, given)

    return act


@instruction("tcgen05", form=r"\.wait::(?P<which>ld|st)\.sync\.aligned", together="warp")
def wait(machine: Machine, inst: Instruction, which: str) -> Step:
    """Wait for the warp's loads or stores."""
    memory = machine.part(TensorMemory)

    def act() -> None:
        for _, block, warp in warps(machine):
            if which == "ld":
                memory().loaded(block, warp)
            else:
                memory().stores.fence(np.array([block]), np.array([warp]))

    return act


def _is(name: str) -> Callable[[Instruction], bool]:
    return lambda inst: inst.op[:2] == ["tcgen05", name]


# ---- products --------------------------------------------------------------------------------


class Shape(NamedTuple):
    """A decoded instruction descriptor (9.7.16.4.2)."""

    rows: int
    columns: int
    kind: str
    turned_a: bool
    turned_b: bool

    @classmethod
    def of(cls, bits: int) -> Shape:
        """Decode a descriptor of kind::f16; Missing for other than float32 sums of one type."""
        types = {0: "f16", 1: "bf16"}
        a, b = bits >> 7 & 7, bits >> 10 & 7
        other = bits & ~(0x3F << 17 | 0x1F << 24 | 3 << 15 | 0x3F << 7 | 1 << 4)
        if other or not bits >> 4 & 1 or a != b or a not in types:
            raise Missing(f"the instruction descriptor {bits:#x}")
        rows, columns = (bits >> 24 & 0x1F) * 16, (bits >> 17 & 0x3F) * 8
        step = {64: 8, 128: 16}.get(rows)
        if step is None or columns % step or not step <= columns <= 256:
            raise Fault(f"a product of {rows} by {columns}")
        return cls(rows, columns, types[a], bool(bits >> 15 & 1), bool(bits >> 16 & 1))


@instruction("tcgen05", form=rf"\.mma{GROUP}\.kind::f16")
def mma(machine: Machine, inst: Instruction) -> Step:
    """D = A B, or A B + D, issued by one thread for its block."""
    if len(inst.args) != 5 or inst.args[1].startswith("["):
        raise Missing("its operands")
    memory, proxy = machine.part(TensorMemory), machine.part(Proxy)
    address, add = machine.address(inst.args[0]), machine.read_all(inst.args[4], "pred")
    a, b = (machine.read_all(operand, "b64") for operand in inst.args[1:3])
    shapes = machine.read_all(inst.args[3], "b32")

    def issue(thread: int) -> None:
        block, warp = machine.block[thread : thread + 1], int(machine.warp[thread])
        shape = Shape.of(int(shapes()[thread]))
        memory().products.issued[0, block] += 1
        factors = []
        for rows, read, turned in (
            (shape.rows, a, shape.turned_a),
            (shape.columns, b, shape.turned_b),
        ):
            tile = Descriptor.of_tcgen05(int(read()[thread]))
            form = Form(rows, DEPTH, shape.kind, not turned)
            values, places = proxy().factor(tile, form, block, np.array([[warp]]))
            memory().factors.note(np.zeros(1, int), block, places)
            factors.append(values[0])
        where = _sums(memory(), int(machine.spread(address())[thread]), int(block[0]), shape, inst)
        old = memory().accumulate(where, int(block[0]), warp, bool(add()[thread]))
        memory().put(where, fragments.toward_zero(factors[0] @ factors[1].T + old))

    def act() -> None:
        threads = np.arange(machine.count) if machine.mask is None else np.nonzero(machine.mask)[0]
        if len(np.unique(machine.block[threads])) != len(threads):
            raise Fault("several threads of a block issue it")
        for thread in threads:
            issue(int(thread))

    return act


def _sums(memory: TensorMemory, base: int, block: int, shape: Shape, inst: Instruction) -> Array:
    """The cells [row, column] of D (9.7.16.10.5); with 64 rows, 16 of every 32 lanes are used."""
    row = np.arange(shape.rows)[:, None]
    lanes = row if shape.rows == 128 else row // 16 * 32 + row % 16
    first = base >> 16
    if first not in ((0,) if shape.rows == 128 else (0, 16)):
        raise Fault(f"sums that begin at lane {first}")
    columns = (base & 0xFFFF) + np.arange(shape.columns)[None, :]
    return memory.positions(block, first + lanes, columns)


@instruction("tcgen05", form=rf"\.commit{GROUP}\.mbarrier::arrive::one(\.shared::cluster)?\.b64")
def commit(machine: Machine, inst: Instruction) -> Step:
    """All products issued by the thread arrive at an mbarrier when they end."""
    memory, arrivals = machine.part(TensorMemory), machine.part(Arrivals)
    address = machine.address(inst.args[0])

    def act() -> None:
        _, at, blocks, who = accesses(machine, address())
        machine.shared.load(at, blocks, who, np.dtype(np.uint64), 1, inst.text)
        for position, block in zip(at, blocks, strict=True):
            arrivals().commit(int(position), memory().products, int(block))

    return act
