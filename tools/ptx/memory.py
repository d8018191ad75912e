"""Global memory: allocations at addresses; every access is checked for bounds and alignment.

Races between threads or blocks are not detected. A launch must not write to what it loads with
``ld.global.nc``, through a cache that does not see stores; this is checked per allocation.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tools.ptx.errors import Fault
from tools.ptx.types import Array


class Piece:
    """An allocation: `data` are its bytes, at `start`."""

    def __init__(self, start: int, data: Array) -> None:
        if data.dtype != np.uint8 or data.ndim != 1:
            raise ValueError(f"expected a 1-D array of uint8, got {data.dtype} of {data.shape}")
        self.start, self.data = start, data
        self.written = self.cached = False
        """Whether this launch has stored here, and has loaded with ``ld.global.nc``."""
        self._views: dict[tuple[np.dtype[Any], int], Array] = {}

    def rows(self, dtype: np.dtype[Any], count: int) -> tuple[int, Array]:
        """The bytes as rows of `count` elements, and the offset of the first, aligned row."""
        size = dtype.itemsize * count
        skip = -self.start % size
        view = self._views.get((dtype, count))
        if view is None:
            whole = max(0, len(self.data) - skip) // size * size
            view = self.data[skip : skip + whole].view(dtype)
            view = self._views[dtype, count] = view.reshape(-1, count) if count > 1 else view
        return skip, view


class Memory:
    """Allocations, which must not overlap. Addresses may differ from those of the arrays."""

    def __init__(self, pieces: Iterable[tuple[int, Array]]) -> None:
        """Pieces are (address, array of uint8); empty ones are ignored."""
        self.pieces = sorted(
            (Piece(start, data) for start, data in pieces if len(data)), key=lambda p: p.start
        )
        self.starts = [piece.start for piece in self.pieces]
        for one, other in zip(self.pieces, self.pieces[1:], strict=False):
            if one.start + len(one.data) > other.start:
                raise ValueError(f"allocations overlap at {other.start:#x}")

    @classmethod
    def of(cls, arrays: Iterable[Array]) -> Memory:
        """Contiguous arrays at their own addresses."""
        return cls((a.ctypes.data, a.reshape(-1).view(np.uint8)) for a in arrays)

    def groups(
        self, addresses: Array, size: int, what: str
    ) -> Iterator[tuple[Piece, Array | None, Array]]:
        """Accesses of `size` bytes at `addresses` (uint64), by allocation.

        Yields the piece, the accesses to it (None means all), and their offsets in it.
        """
        if size > 1 and int(np.bitwise_or.reduce(addresses)) & (size - 1):
            raise Fault(f"misaligned access of {size} bytes to global memory: {what}")
        index = bisect_right(self.starts, int(addresses[0])) - 1
        if index >= 0:
            piece = self.pieces[index]
            offsets = addresses - np.uint64(piece.start)
            if int(offsets.max()) <= len(piece.data) - size:
                yield piece, None, offsets.view(np.int64)
                return
        found = np.searchsorted(np.array(self.starts, np.uint64), addresses, "right") - 1
        for index in np.unique(found):
            chosen = np.nonzero(found == index)[0]
            if index < 0:
                raise Fault(f"access below every allocation, at {addresses[chosen[0]]:#x}: {what}")
            piece = self.pieces[index]
            offsets, room = addresses[chosen] - np.uint64(piece.start), len(piece.data) - size
            outside = (offsets > np.uint64(max(room, 0))) | (room < 0)
            if outside.any():
                raise Fault(
                    f"access outside of every allocation, {outside.sum()} threads, one at byte "
                    f"{offsets[outside][0]} of the nearest one's {len(piece.data)}: {what}"
                )
            yield piece, chosen, offsets.view(np.int64)

    def groups_to_write(
        self, addresses: Array, size: int, what: str
    ) -> Iterator[tuple[Piece, Array | None, Array]]:
        """Like `groups`, for accesses that write."""
        for group in self.groups(addresses, size, what):
            group[0].written = True
            self._refuse_stale(group[0], what)
            yield group

    def _refuse_stale(self, piece: Piece, what: str) -> None:
        if piece.written and piece.cached:
            raise Fault(f"writes an allocation that ld.global.nc reads, or the reverse: {what}")

    def begin(self) -> None:
        """Start a launch: nothing was stored or loaded yet."""
        for piece in self.pieces:
            piece.written = piece.cached = False

    def load(
        self, addresses: Array, dtype: np.dtype[Any], count: int, what: str, cached: bool = False
    ) -> list[Array]:
        """`count` elements from each address: one array per element."""
        size = dtype.itemsize * count
        out: list[Array] | None = None
        for piece, chosen, offsets in self.groups(addresses, size, what):
            if cached:
                piece.cached = True
                self._refuse_stale(piece, what)
            skip, rows = piece.rows(dtype, count)
            values = rows.take((offsets - skip) // size, axis=0)
            columns = [values] if count == 1 else [values[:, k] for k in range(count)]
            if chosen is None:
                return [np.ascontiguousarray(column) for column in columns]
            out = out or [np.empty(len(addresses), dtype) for _ in range(count)]
            for k, column in enumerate(columns):
                out[k][chosen] = column
        assert out is not None
        return out

    def store(self, addresses: Array, values: Sequence[Array], what: str) -> None:
        """Store one array per element; if two threads store to one place, the last one wins."""
        dtype, count = values[0].dtype, len(values)
        size = dtype.itemsize * count
        for piece, chosen, offsets in self.groups_to_write(addresses, size, what):
            skip, rows = piece.rows(dtype, count)
            at = (offsets - skip) // size
            if count == 1:
                rows[at] = values[0] if chosen is None else values[0][chosen]
            else:
                for k, column in enumerate(values):
                    rows[at, k] = column if chosen is None else column[chosen]


def bytes_at(address: int, size: int, written: bool = True) -> Array:
    """The memory of this process at an address; its owner must outlive the array."""
    found = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    found.flags.writeable = written
    return found
