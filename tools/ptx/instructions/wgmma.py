"""wgmma: products of a warpgroup, with descriptors of shared memory (PTX ISA 9.7.15).

A product is computed when it is issued. The code is checked for uses of its registers before
wgmma.wait_group, and for a fence before the product (``flow.py``); shared memory is checked during
the run (``proxy.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.errors import Fault, Missing
from tools.ptx.instructions import flow, fragments
from tools.ptx.instructions.descriptors import Descriptor, Form
from tools.ptx.instructions.matrix import vector
from tools.ptx.instructions.proxy import Products, Proxy
from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.kernel import Instruction, Kernel
from tools.ptx.types import Array

if TYPE_CHECKING:
    from tools.ptx.machine import Machine

ROWS = 64
"""Of A and D."""

THREADS = 128
"""Of a warpgroup."""

PRODUCT = (
    r"\.mma_async\.sync\.aligned\.m64n(?P<columns>\d+)k(?P<depth>8|16)"
    r"\.f32\.(?P<kind>bf16|f16|tf32)\.(?P=kind)"
)


@dataclass(frozen=True)
class Groups:
    """The warpgroups that run an instruction: their global index, index in the block, and block."""

    every: Array
    stream: Array
    block: Array

    @classmethod
    def of(cls, machine: Machine) -> Groups:
        """The warpgroups of the running threads."""
        first = np.arange(0, machine.count, THREADS)
        if machine.mask is not None:
            first = first[machine.mask[first]]
        return cls(first // THREADS, machine.warp[first] // 4, machine.block[first])


class Issued:
    """The products of the running warpgroups; a part of the machine."""

    def __init__(self, machine: Machine) -> None:
        proxy = machine.part(Proxy)()
        self.products = Products(-(-proxy.warps // 4), proxy.blocks, proxy.warps)
        self.reads = proxy.uses_of(self.products)

    def finish(self) -> None:
        """Nothing to do."""


@instruction("wgmma", form=PRODUCT, together="warpgroup")
def mma_async(machine: Machine, inst: Instruction, columns: str, depth: str, kind: str) -> Step:
    """D = A B, or A B + D if scale-d is true; A is in registers or, like B, in shared memory."""
    sums, a, b, scale, *immediates = inst.args
    if (depth == "8") != (kind == "tf32") or immediates[:2] != ["1", "1"]:
        raise Missing("its operands")
    turned = [number == "1" for number in immediates[2:]]
    turned = [False] * (2 - len(turned)) + turned
    registers = vector(a) if a.startswith("{") else []
    _check_registers(machine.kernel, inst, registers)
    if registers:
        left = _of_registers(machine, registers, kind)
    else:
        left = _of_shared(machine, a, Form(ROWS, int(depth), kind, not turned[0]))
    right = _of_shared(machine, b, Form(int(columns), int(depth), kind, not turned[1]))
    reads = [machine.read_all(name, "f32") for name in vector(sums)]
    writers = [machine.writer(name, "f32") for name in vector(sums)]
    add, issued = machine.read_all(scale, "pred"), machine.part(Issued)

    def multiply() -> None:
        groups = Groups.of(machine)
        issued().products.issued[groups.stream, groups.block] += 1
        found = np.zeros((machine.count // THREADS, ROWS, int(columns)))
        found[groups.every] = left(groups) @ right(groups).swapaxes(1, 2)
        added = add()[::THREADS]
        if added.any():
            old = fragments.d_fragment([read() for read in reads]).reshape(found.shape)
            found[added] += old[added]
        words = fragments.d_registers(found.reshape(-1, 16, int(columns)))
        for write, values in zip(writers, fragments.toward_zero(words), strict=True):
            write(values)

    return multiply


def _of_registers(machine: Machine, names: list[str], kind: str) -> Callable[[Groups], Array]:
    """A [group, 64, depth]: each warp has 16 rows in its registers, as in mma."""
    reads = [machine.read_all(name, "b32") for name in names]

    def matrices(groups: Groups) -> Array:
        rows = fragments.a_fragment([read() for read in reads], kind)
        return rows.reshape(machine.count // THREADS, ROWS, -1)[groups.every]

    return matrices


def _of_shared(machine: Machine, operand: str, form: Form) -> Callable[[Groups], Array]:
    """A factor [group, rows, depth] in shared memory, located by each group's descriptor."""
    descriptors = machine.read_all(operand, "b64")
    proxy, issued = machine.part(Proxy), machine.part(Issued)

    def matrices(groups: Groups) -> Array:
        bits = descriptors()[::THREADS][groups.every]
        out = np.empty((len(bits), form.rows, form.depth))
        for one in np.unique(bits):
            chosen = np.nonzero(bits == one)[0]
            blocks, streams = groups.block[chosen], groups.stream[chosen]
            tile = Descriptor.of_wgmma(int(one))
            readers = 4 * streams[:, None] + np.arange(4)
            out[chosen], places = proxy().factor(tile, form, blocks, readers)
            issued().reads.note(streams, blocks, places)
        return out

    return matrices


# ---- checks of the code ----------------------------------------------------------------------


def _check_registers(kernel: Kernel, inst: Instruction, of_a: list[str]) -> None:
    """Check that the registers are fenced before, and not used again until the wait.

    Products that accumulate in the same registers, in the same shape, need neither between them.

    Raises:
        Fault: the registers are not fenced, or used too early.
    """
    registers = {*vector(inst.args[0]), *of_a}

    def allowed(other: Instruction) -> bool:
        if not _is("mma_async")(other):
            return False
        same = other.op == inst.op and other.args[0] == inst.args[0]
        return same or not registers & set(vector(other.args[0]))

    position = flow.position(kernel, inst)
    for at in flow.walk(kernel, position, _is("fence"), backward=True):
        if at < 0:
            raise Fault(f"no wgmma.fence between the kernel's beginning and {inst.text}")
        met = kernel.code[at]
        if registers & flow.names(met) and not allowed(met):
            raise Fault(f"no wgmma.fence between {met.text} and {inst.text}")
    flow.refuse_use(kernel, inst, registers, [_is("commit_group"), _is("wait_group")], allowed)


def _is(name: str) -> Callable[[Instruction], bool]:
    return lambda inst: inst.op[:2] == ["wgmma", name]


# ---- order -----------------------------------------------------------------------------------


@instruction("wgmma", form=r"\.fence\.sync\.aligned", together="warp")
def fence(machine: Machine, inst: Instruction) -> Step:
    """Orders registers; already checked in the code."""
    return lambda: None


@instruction("wgmma", form=r"\.commit_group\.sync\.aligned", together="warpgroup")
def commit_group(machine: Machine, inst: Instruction) -> Step:
    """Commit the products so far as a group, which can be waited for."""
    issued = machine.part(Issued)

    def commit() -> None:
        groups, products = Groups.of(machine), issued().products
        at = groups.stream, groups.block
        products.committed[at] = products.issued[at]

    return commit


@instruction("wgmma", form=r"\.wait_group\.sync\.aligned", together="warpgroup")
def wait_group(machine: Machine, inst: Instruction) -> Step:
    """All groups have ended.

    What they read may change only after the next barrier, because a warp that has waited is not
    assumed to know what the instruction still does for the other three warps.
    """
    if inst.args != ["0"]:
        raise Missing("its operands")
    issued = machine.part(Issued)

    def wait() -> None:
        groups, products = Groups.of(machine), issued().products
        at = groups.stream, groups.block
        products.waited[at] = products.committed[at]

    return wait
