"""The asynchronous proxy: what tensor cores read of shared memory, and what may change meanwhile.

Products of wgmma and tcgen05 read shared memory past the order of the threads that issue them (PTX
ISA 8.6, 9.7.15.4, 9.7.16.6). What they read must have been written, a barrier must lie between, and
the warp that wrote must have executed fence.proxy.async after that. Until who writes there next
knows that they have ended, nothing they read may change.
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
    """Products that were issued, by streams in each of which they end in order.

    Those of a stream and block are numbered from 1. A warp knows the last one that it has waited
    for, and after the next barrier the last one that any warp of its block has.

    Args:
        streams: Of a block: its warpgroups for wgmma, 1 for tcgen05.
        blocks, warps: Blocks that run, and warps of each.
    """

    def __init__(self, streams: int, blocks: int, warps: int) -> None:
        self.issued = np.zeros((streams, blocks), np.int32)
        self.committed = np.zeros((streams, blocks), np.int32)
        self.waited = np.zeros((streams, blocks), np.int32)
        self.known = np.zeros((streams, blocks, warps), np.int32)

    def barrier(self, blocks: Array | slice) -> None:
        """All warps of these blocks know what one of them has waited for."""
        self.known[:, blocks] = self.waited[:, blocks, None]


class Uses:
    """The places of a memory that products use: for each stream the number of the last one."""

    def __init__(self, products: Products, places: int) -> None:
        self.products = products
        self.last = np.zeros((len(products.issued), places), np.int32)

    def note(self, streams: Array, blocks: Array, places: Array) -> None:
        """The newest product of each stream and block uses these places, [product, place]."""
        self.last[streams[:, None], places] = self.products.issued[streams, blocks][:, None]

    def pending(self, places: Array, blocks: Array, warps: Array) -> bool:
        """Whether a warp touches a place of a product that it does not know to have ended.

        The last axis of `places` is that of the warps.
        """
        known = self.products.known[:, blocks, warps]
        return any((last[places] > k).any() for last, k in zip(self.last, known, strict=True))


class Fences:
    """Which writes to a memory their warps have fenced since, or waited for.

    Other warps may count on it from the next barrier on. The last column of warps is for what
    several have written: it counts as fenced when all warps have.
    """

    def __init__(self, blocks: int, warps: int, places: int) -> None:
        self.clock = 0  # the fences so far
        self.written = np.zeros(places, np.int32)  # when a place was
        self.fenced = np.zeros((blocks, warps + 1), np.int32)  # when a warp did
        self.published = self.fenced.copy()  # when it did, as of its block's last barrier

    def wrote(self, places: Array) -> None:
        """Threads write there."""
        self.written[places] = self.clock

    def fence(self, blocks: Array, warps: Array) -> None:
        """Warps fence what they have written."""
        self.clock += 1
        self.fenced[blocks, warps] = self.clock
        self.fenced[:, -1] = self.fenced[:, :-1].min(1)

    def barrier(self, blocks: Array | slice) -> None:
        """Blocks pass a barrier."""
        self.published[blocks] = self.fenced[blocks]

    def lacking(self, places: Array, blocks: Array, writers: Array, reader: int = -1) -> bool:
        """Whether a warp has written, and not fenced it before a reader (-1: any) counts on it."""
        published = self.published[blocks, writers]
        counted = np.where(writers == reader, self.fenced[blocks, writers], published)
        return bool((self.written[places] >= counted).any())


class Proxy:
    """The asynchronous proxy's view of the shared memory of the blocks that run.

    A part of the machine (``Machine.part``), told of every write to shared memory and barrier.
    """

    def __init__(self, machine: Machine) -> None:
        self.shared = machine.shared
        self.shared.watcher = self
        self.blocks, self.warps = len(self.shared.epoch), self.shared.warps
        self.fences = Fences(self.blocks, self.warps, len(self.shared.written))
        self.epochs = np.full((self.blocks, self.warps), -1)  # in which a warp last fenced
        self.uses: list[Uses] = []
        self.followers: list[Shared | Fences] = []

    def uses_of(self, products: Products) -> Uses:
        """A new table of what products read of shared memory."""
        self.uses.append(Uses(products, len(self.shared.written)))
        return self.uses[-1]

    def wrote(self, granules: Array, blocks: Array, warps: Array) -> None:
        """Warps write to granules of shared memory, [..., access]."""
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
        """Nothing is left to do."""

    def fence(self, blocks: Array, warps: Array) -> None:
        """Warps fence: what they wrote, and what a barrier has shown them of others."""
        self.fences.fence(blocks, warps)
        self.epochs[blocks, warps] = self.shared.epoch[blocks]

    def factor(
        self, tile: Descriptor, form: Form, blocks: Array, readers: Array
    ) -> tuple[Array, Array]:
        """A factor in the shared memory of each of the blocks, and what of it is touched.

        `readers` are the warps [block, any] that issue its product. Returns float64 [block, rows,
        depth], and granules in the memory of all blocks [block, any].

        Raises:
            Fault: out of bounds, never written, not ordered by a barrier, or without the fence.
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
    """What a warp wrote is shown to the asynchronous proxy; part of a warp does not suffice."""
    proxy = machine.part(Proxy)

    def act() -> None:
        first = np.arange(0, machine.count, 32)
        if machine.mask is not None:
            first = first[machine.mask.reshape(-1, 32).all(1)]
        proxy().fence(machine.block[first], machine.warp[first])

    return act
