"""Shared memory of the blocks that run at once, and race detection.

Two warps that access the same place, at least one of them writing, race unless there is a barrier
of their block in between. Reading uninitialized memory is also a fault. Races within a warp are not
detected: its threads are assumed to run in lockstep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from tools.ptx.errors import Fault
from tools.ptx.types import UNSIGNED, Array


class Watcher(Protocol):
    """Observer of writes and barriers: the asynchronous proxy."""

    def wrote(self, granules: Array, blocks: Array, warps: Array) -> None:
        """Warps of these blocks write to granules [..., access]."""
        ...

    def barrier(self, blocks: Array | slice) -> None:
        """These blocks have passed a barrier."""
        ...


class Shared:
    """Shared memory: `blocks` times `size` bytes, and which warp last wrote and read each granule.

    A stamp is epoch * (warps + 1) + warp; the epoch counts the barriers of a block. The last number
    of an epoch means several warps, 0 means never.

    Args:
        blocks: Number of blocks.
        size: Bytes per block.
        warps: Warps per block.
        granule: Bytes per stamp; no access may be smaller.
    """

    def __init__(self, blocks: int, size: int, warps: int, granule: int = 4) -> None:
        self.size, self.granule = size, granule
        self.stride = -(-size // 16) * 16
        """Bytes from one block to the next."""
        self.data = np.zeros(blocks * self.stride, np.uint8)
        self.epoch = np.ones(blocks, np.int32)
        self.warps = warps
        self.written, self.read = np.zeros((2, len(self.data) // granule), np.int32)
        self.watcher: Watcher | None = None

    def barrier(self, blocks: Array | slice = slice(None)) -> None:
        """These blocks (indices or a mask) have passed a barrier."""
        self.epoch[blocks] += 1
        if self.watcher:
            self.watcher.barrier(blocks)

    def positions(self, offsets: Array, blocks: Array, size: int, what: str) -> Array:
        """The positions of accesses of `size` bytes in `data`; checks bounds and alignment.

        `offsets` are uint64, in the shared memory of `blocks`, one number per access.
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
        """Store one array per element at the `positions`.

        Two warps may store the same bits at once: Triton does so if threads hold the same element.
        """
        width = values[0].itemsize
        bits, size = UNSIGNED[min(width, 8)], width * len(values)  # there is no 16-byte integer
        parts = [column.view(bits).reshape(len(column), -1) for column in values]
        columns = [part[:, k] for part in parts for k in range(part.shape[1])]
        rows, row = self.data.view(bits).reshape(-1, len(columns)), at // size

        def stored() -> bool:
            return all((rows[row, k] == column).all() for k, column in enumerate(columns))

        again = self.note_write(at, blocks, warps, size, what, stored)
        for k, column in enumerate(columns):
            rows[row, k] = column
        if again and not stored():
            raise Fault(f"race in shared memory, two warps write at once: {what}")

    def writers(self, granules: Array) -> tuple[Array, Array]:
        """The epoch and warp of the last write to each granule; Fault if there was none."""
        written = self.written[granules]
        if not written.all():
            raise Fault("reads what nothing has written")
        return np.divmod(written, self.warps + 1)

    def forget(self, granules: Array) -> None:
        """Mark as never written."""
        self.written[granules] = 0

    def settle(self, granules: Array) -> None:
        """Mark as written before everything that is recorded."""
        self.written[granules] = 1

    def granules(self, at: Array, size: int) -> Array:
        """The granules of accesses of `size` bytes: [granule, access]."""
        first, count = at // self.granule, -(-size // self.granule)
        return first if count == 1 else first + np.arange(count)[:, None]

    def note_read(self, at: Array, blocks: Array, warps: Array, size: int, what: str) -> None:
        """Check and record a read; Fault for a race or uninitialized memory."""
        granules = self.granules(at, size)
        epoch = self.epoch[blocks] * (self.warps + 1)
        stamp = (epoch + warps).astype(np.int32)
        written = self.written[granules]
        if not written.all():
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

    def note_write(
        self,
        at: Array,
        blocks: Array,
        warps: Array,
        size: int,
        what: str,
        stored: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Check and record a write; Fault for a race, unless the written value is `stored`.

        Returns whether several warps write to a granule now; their values must not differ.
        """
        granules = self.granules(at, size)
        epoch = self.epoch[blocks] * (self.warps + 1)
        stamp = (epoch + warps).astype(np.int32)
        several = np.zeros(granules.shape, bool)
        for table, earlier in ((self.written, "write"), (self.read, "read")):
            before = table[granules]
            other = (before >= epoch) & (before != stamp)
            if other.any() and not (earlier == "write" and stored()):
                raise Fault(
                    f"race in shared memory, a write after a {earlier} of another warp: {what}"
                )
            several = other if earlier == "write" else several
        stamp = np.broadcast_to(stamp, granules.shape)
        self.written[granules] = stamp
        again = self.written[granules] != stamp
        several |= again
        if several.any():
            many = np.broadcast_to(epoch + self.warps, granules.shape)
            self.written[granules[several]] = many[several]
        if self.watcher:
            self.watcher.wrote(granules, blocks, warps)
        return bool(again.any())
