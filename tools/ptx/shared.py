"""Shared memory of the blocks that run at once, and the races in it.

Two warps that touch the same place, one of them writing, race unless a barrier of their block lies
between. Reading what nothing has written is a fault, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tools.ptx.errors import Fault
from tools.ptx.types import Array


class Shared:
    """Shared memory: `blocks` times `size` bytes, and who last wrote and read each granule.

    A stamp is epoch * (warps + 1) + warp; the epoch counts the barriers of a block. The last number
    of an epoch stands for several warps, -1 for never.

    Args:
        blocks: Number of blocks.
        size: Bytes of each.
        warps: Number of warps in a block.
        granule: Bytes for which one stamp is kept: no access may be smaller.
    """

    def __init__(self, blocks: int, size: int, warps: int, granule: int = 4) -> None:
        self.size, self.granule = size, granule
        self.stride = -(-size // 16) * 16
        """Bytes from one block to the next."""
        self.data = np.zeros(blocks * self.stride, np.uint8)
        self.epoch = np.zeros(blocks, np.int32)
        self.warps = warps
        self.written = np.full(len(self.data) // granule, -1, np.int32)
        self.read = self.written.copy()

    def barrier(self, blocks: Array | slice = slice(None)) -> None:
        """These blocks (indices or a mask) have passed a barrier."""
        self.epoch[blocks] += 1

    def positions(self, offsets: Array, blocks: Array, size: int, what: str) -> Array:
        """Where accesses of `size` bytes lie in `data`; checks bounds and alignment.

        `offsets` are uint64, in the shared memory of `blocks`, a number for each.
        """
        if size > 1 and int(np.bitwise_or.reduce(offsets)) & (size - 1):
            raise Fault(f"misaligned access of {size} bytes to shared memory: {what}")
        if (last := int(offsets.max())) + size > self.size:
            raise Fault(f"access outside of shared memory: {what}; at {last} of {self.size} bytes")
        return offsets.astype(np.int64) + blocks * self.stride

    def load(
        self, at: Array, blocks: Array, warps: Array, dtype: np.dtype[Any], count: int, what: str
    ) -> list[Array]:
        """`count` elements from each of the `positions`, read by these warps of these blocks."""
        size = dtype.itemsize * count
        self.note_read(at, blocks, warps, size, what)
        rows = self.data.view(dtype).reshape(-1, count).take(at // size, axis=0)
        return [np.ascontiguousarray(rows[:, k]) for k in range(count)]

    def store(
        self, at: Array, blocks: Array, warps: Array, values: Sequence[Array], what: str
    ) -> None:
        """Store an array for each element at the `positions`."""
        dtype, count = values[0].dtype, len(values)
        self.note_write(at, blocks, warps, dtype.itemsize * count, what)
        rows = self.data.view(dtype).reshape(-1, count)
        for k, column in enumerate(values):
            rows[at // (dtype.itemsize * count), k] = column

    def granules(self, at: Array, size: int) -> Array:
        """The granules that accesses of `size` bytes touch: [granule, access]."""
        first, count = at // self.granule, -(-size // self.granule)
        return first if count == 1 else first + np.arange(count)[:, None]

    def note_read(self, at: Array, blocks: Array, warps: Array, size: int, what: str) -> None:
        """Check and remember a read; raises Fault for a race or what was never written."""
        granules = self.granules(at, size)
        epoch = self.epoch[blocks] * (self.warps + 1)
        stamp = (epoch + warps).astype(np.int32)
        written = self.written[granules]
        if (written < 0).any():
            raise Fault(f"reads shared memory that nothing has written: {what}")
        if ((written >= epoch) & (written != stamp)).any():
            raise Fault(f"race in shared memory, a read after a write of another warp: {what}")
        before = self.read[granules]
        stamp = np.broadcast_to(stamp, granules.shape)
        several = (before >= epoch) & (before != stamp)
        self.read[granules] = stamp
        several |= self.read[granules] != stamp
        if several.any():
            many = np.broadcast_to(epoch + self.warps, granules.shape)
            self.read[granules[several]] = many[several]

    def note_write(self, at: Array, blocks: Array, warps: Array, size: int, what: str) -> None:
        """Check and remember a write; raises Fault for a race."""
        granules = self.granules(at, size)
        epoch = self.epoch[blocks] * (self.warps + 1)
        stamp = (epoch + warps).astype(np.int32)
        for table, earlier in ((self.written, "write"), (self.read, "read")):
            before = table[granules]
            if ((before >= epoch) & (before != stamp)).any():
                raise Fault(
                    f"race in shared memory, a write after a {earlier} of another warp: {what}"
                )
        stamp = np.broadcast_to(stamp, granules.shape)
        self.written[granules] = stamp
        if (self.written[granules] != stamp).any():
            raise Fault(f"race in shared memory, two warps write at once: {what}")
