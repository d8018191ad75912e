"""The asynchronous proxy: what tensor cores read from shared memory, and what may change meanwhile.

Products of wgmma and tcgen05 read shared memory asynchronously to the threads that issue them (PTX
ISA 8.6, 9.7.15.4, 9.7.16.6). What they read must have been written before, followed by
fence.proxy.async in the writing warp and by a barrier. It must not change until the next writer
knows that the products have ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.errors import Fault
from tools.ptx.instructions import fragments
from tools.ptx.instructions.descriptors import Descriptor, Form, footprint
from tools.ptx.instructions.registry import Step, instruction
from tools.ptx.kernel import Instruction
from tools.ptx.shared import Shared
from tools.ptx.types import UNSIGNED, Array

if TYPE_CHECKING:
    from tools.ptx.machine import Machine


class Products:
    """Issued products, by stream; the products of a stream end in order.

    The products of a stream and block are numbered from 1. A warp knows the last product that it
    has waited for and, after the next barrier, the last one that any warp of its block waited for.

    Args:
        streams: Per block: its warpgroups for wgmma, 1 for tcgen05.
        blocks, warps: Running blocks, and warps per block.
    """

    def __init__(self, streams: int, blocks: int, warps: int) -> None:
        self.issued = np.zeros((streams, blocks), np.int32)
        self.committed = np.zeros((streams, blocks), np.int32)
        self.waited = np.zeros((streams, blocks), np.int32)
        self.known = np.zeros((streams, blocks, warps), np.int32)

    def barrier(self, blocks: Array | slice) -> None:
        """All warps of these blocks now know what any of their warps has waited for."""
        self.known[:, blocks] = self.waited[:, blocks, None]


class Uses:
    """The places of a memory that products use: for each stream, the number of the last product."""

    def __init__(self, products: Products, places: int) -> None:
        self.products = products
        self.last = np.zeros((len(products.issued), places), np.int32)

    def note(self, streams: Array, blocks: Array, places: Array) -> None:
        """The newest product of each stream and block uses these places [product, place]."""
        self.last[streams[:, None], places] = self.products.issued[streams, blocks][:, None]

    def pending(self, places: Array, blocks: Array, warps: Array) -> bool:
        """Whether a warp accesses a place of a product that it does not know to have ended.

        The last axis of `places` is the warps.
        """
        known = self.products.known[:, blocks, warps]
        return any((last[places] > k).any() for last, k in zip(self.last, known, strict=True))


class Fences:
    """Which writes to a memory were later fenced, or waited for, by their warps.

    Other warps may rely on this after the next barrier. The last column of warps is for places that
    several warps have written: it counts as fenced once all warps have fenced.
    """

    def __init__(self, blocks: int, warps: int, places: int) -> None:
        self.clock = 0  # number of fences so far
        self.written = np.zeros(places, np.int32)  # at the write to a place
        self.fenced = np.zeros((blocks, warps + 1), np.int32)  # at a warp's last fence
        self.published = self.fenced.copy()  # at its last fence before its block's last barrier

    def wrote(self, places: Array) -> None:
        """Record writes."""
        self.written[places] = self.clock

    def fence(self, blocks: Array, warps: Array) -> None:
        """Record fences of warps."""
        self.clock += 1
        self.fenced[blocks, warps] = self.clock
        self.fenced[:, -1] = self.fenced[:, :-1].min(1)

    def barrier(self, blocks: Array | slice) -> None:
        """Blocks pass a barrier."""
        self.published[blocks] = self.fenced[blocks]

    def lacking(self, places: Array, blocks: Array, writers: Array, reader: int = -1) -> bool:
        """Whether a warp has written without a fence that a reader (-1: any) may rely on."""
        published = self.published[blocks, writers]
        counted = np.where(writers == reader, self.fenced[blocks, writers], published)
        return bool((self.written[places] >= counted).any())


class Proxy:
    """The asynchronous proxy's view of the shared memory of the running blocks.

    A part of the machine (``Machine.part``), notified of every write to shared memory and barrier.
    """

    def __init__(self, machine: Machine) -> None:
        self.shared = machine.shared
        self.shared.watcher = self
        self.blocks, self.warps = len(self.shared.epoch), self.shared.warps
        self.fences = Fences(self.blocks, self.warps, len(self.shared.written))
        self.epochs = np.full((self.blocks, self.warps), -1)  # of a warp's last fence
        self.uses: list[Uses] = []
        self.followers: list[Shared | Fences] = []

    def uses_of(self, products: Products) -> Uses:
        """A new table of the shared memory that products read."""
        self.uses.append(Uses(products, len(self.shared.written)))
        return self.uses[-1]

    def wrote(self, granules: Array, blocks: Array, warps: Array) -> None:
        """Warps write to granules of shared memory [..., access]."""
        self.fences.wrote(granules)
        if any(uses.pending(granules, blocks, warps) for uses in self.uses):
            raise Fault("writes what an asynchronous product still reads")

    def barrier(self, blocks: Array | slice) -> None:
        """Blocks pass a barrier."""
        self.fences.barrier(blocks)
        for uses in self.uses:
            uses.products.barrier(blocks)
        for memory in self.followers:
            memory.barrier(blocks)

    def finish(self) -> None:
        """Nothing to do."""

    def fence(self, blocks: Array, warps: Array) -> None:
        """Warps fence what they wrote, and what they know of others from a barrier."""
        self.fences.fence(blocks, warps)
        self.epochs[blocks, warps] = self.shared.epoch[blocks]

    def factor(
        self, tile: Descriptor, form: Form, blocks: Array, readers: Array
    ) -> tuple[Array, Array]:
        """A factor in the shared memory of each of the blocks, and the granules that it touches.

        `readers` are the warps [block, any] that issue its product. Returns float64 [block, rows,
        depth], and granules in the memory of all blocks [block, any].

        Raises:
            Fault: out of bounds, never written, not ordered by a barrier, or without a fence.
        """
        shared, size = self.shared, fragments.BITS[form.kind] // 8
        place = footprint(tile, form, shared.granule)
        if (int(place.granules[-1]) + 1) * shared.granule > shared.size:
            raise Fault("access outside of shared memory")
        granules = place.granules + blocks[:, None] * (shared.stride // shared.granule)
        epochs, writers = shared.writers(granules)
        if (epochs >= shared.epoch[blocks][:, None]).any():
            raise Fault("reads what no barrier has ordered")
        if self.fences.lacking(granules, blocks[:, None], writers):
            by_readers = self.epochs[blocks[:, None], readers].min(1)
            if (epochs >= by_readers[:, None]).any():
                raise Fault("reads what no fence.proxy.async has shown it")
        elements = shared.data.view(UNSIGNED[size]).reshape(self.blocks, -1)
        values = elements[blocks[:, None, None], place.elements]
        return fragments.numbers(values, form.kind), granules


@instruction("fence", form=r"\.proxy\.async(\.shared::cta)?")
def fence(machine: Machine, inst: Instruction) -> Step:
    """Make a warp's writes visible to the asynchronous proxy; requires a whole warp."""
    proxy = machine.part(Proxy)

    def act() -> None:
        first = np.arange(0, machine.count, 32)
        if machine.mask is not None:
            first = first[machine.mask.reshape(-1, 32).all(1)]
        proxy().fence(machine.block[first], machine.warp[first])

    return act
