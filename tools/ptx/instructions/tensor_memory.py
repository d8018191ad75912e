"""Tensor memory: 128 lanes by 512 columns of 32 bits per block (PTX ISA 9.7.16.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.errors import Fault
from tools.ptx.instructions.proxy import Fences, Products, Proxy, Uses
from tools.ptx.shared import Shared
from tools.ptx.types import Array

if TYPE_CHECKING:
    from tools.ptx.machine import Machine

LANES, COLUMNS = 128, 512
CELL = 4
"""Bytes of a cell."""

FEWEST = 32
"""Columns of an allocation; a power of two."""


class TensorMemory:
    """The tensor memory of the running blocks; a part of the machine.

    Cells are read and written like shared memory, with the same checks. Products also write to
    cells: sums are only for warps that have waited for their product. Cells are numbered across
    all blocks.
    """

    def __init__(self, machine: Machine) -> None:
        proxy = machine.part(Proxy)()
        self.proxy, self.blocks = proxy, proxy.blocks
        self.cells = Shared(self.blocks, LANES * COLUMNS * CELL, proxy.warps, CELL)
        self.products = Products(1, self.blocks, proxy.warps)
        self.factors = proxy.uses_of(self.products)
        self.sums = Uses(self.products, len(self.cells.written))
        self.stores = Fences(self.blocks, proxy.warps, len(self.cells.written))
        self.loads: dict[tuple[int, int], list[Array]] = {}  # by a warp that has not waited
        self.loading = np.zeros(len(self.cells.written), np.int32)  # these loads, per cell
        self.allocated = np.zeros((self.blocks, COLUMNS), bool)
        self.allocations: dict[tuple[int, int], int] = {}
        self.relinquished = np.zeros(self.blocks, bool)
        proxy.followers += [self.cells, self.stores]

    # ---- allocation ----

    def allocate(self, block: int, columns: int) -> int:
        """Allocate this many columns of all lanes; returns their address.

        Blocks get different addresses, as if several of them ran on one multiprocessor.
        """
        if self.relinquished[block]:
            raise Fault("allocates after relinquish_alloc_permit")
        if columns < FEWEST or columns > COLUMNS or columns & (columns - 1):
            raise Fault(f"allocates {columns} columns")
        firsts = range(0, COLUMNS - columns + 1, FEWEST)
        free = [f for f in firsts if not self.allocated[block, f : f + columns].any()]
        if not free:
            raise Fault(f"no {columns} columns are free")
        first = free[(block + 1) % len(free)]
        self.allocated[block, first : first + columns] = True
        self.allocations[block, first] = columns
        return first

    def deallocate(self, block: int, warp: int, address: int, columns: int) -> None:
        """Free an allocation, which this warp must know to be no longer in use."""
        if self.allocations.pop((block, address), 0) != columns:
            raise Fault(f"no {columns} columns were allocated there")
        cells = self.positions(block, np.arange(LANES)[:, None], address + np.arange(columns))
        self.store(cells, block, warp, np.zeros(cells.shape, np.uint32))
        self.cells.forget(cells)
        self.allocated[block, address : address + columns] = False

    def finish(self) -> None:
        """The blocks end; Fault if something was not freed."""
        if self.allocations:
            raise Fault(f"tensor memory is not deallocated: {len(self.allocations)} blocks")

    # ---- access ----

    def positions(self, block: int, lanes: Array, columns: Array) -> Array:
        """The cells of a block at these lanes and columns, which must be allocated."""
        if int(lanes.max()) >= LANES or int(columns.max()) >= COLUMNS:
            raise Fault("access outside of tensor memory")
        if not self.allocated[block][columns].all():
            raise Fault("access to tensor memory that is not allocated")
        return (block * LANES + lanes) * COLUMNS + columns

    def load(self, cells: Array, block: int, warp: int) -> Array:
        """The words of these cells, which this warp is reading until it waits."""
        self.check(cells, block, warp)
        self.note_read(cells, block, warp)
        self.loads.setdefault((block, warp), []).append(cells)
        np.add.at(self.loading, cells, 1)
        return self.cells.data.view(np.uint32)[cells]

    def loaded(self, block: int, warp: int) -> None:
        """The warp has waited for its loads: only now have they completed."""
        for cells in self.loads.pop((block, warp), []):
            self.note_read(cells, block, warp)
            np.subtract.at(self.loading, cells, 1)

    def store(self, cells: Array, block: int, warp: int, words: Array) -> None:
        """Store words to cells; visible to others after the warp's wait and a barrier."""
        self.check(cells, block, warp)
        self.note_write(cells, block, warp)
        self.stores.wrote(cells)
        self.cells.data.view(np.uint32)[cells] = words

    def accumulate(self, cells: Array, block: int, warp: int, add: bool) -> Array:
        """The initial sums [row, column] of a new product as float64: existing sums, or zeros."""
        self.check_stored(cells, block, warp)
        if add:
            self.note_read(cells, block, warp)
        self.note_write(cells, block, warp)
        self.cells.settle(cells)  # warps that have waited for the product may read
        self.sums.note(np.zeros(1, int), np.full(1, block), cells.reshape(1, -1))
        old = self.cells.data.view(np.float32)[cells]
        return old.astype(np.float64) if add else np.zeros(cells.shape)

    def put(self, cells: Array, sums: Array) -> None:
        """Store the sums of a product, in float32."""
        self.cells.data.view(np.float32)[cells] = sums

    # ---- checks ----

    def check(self, cells: Array, block: int, warp: int) -> None:
        """Check that, to this warp's knowledge, products have ended and stores have arrived."""
        if self.sums.pending(cells.reshape(-1), _one(block), _one(warp)):
            raise Fault("touches sums of a product that it has not waited for")
        self.check_stored(cells, block, warp)

    def check_stored(self, cells: Array, block: int, warp: int) -> None:
        """Check that stores of threads have been waited for."""
        stored = cells[self.cells.written[cells] > self.cells.warps]  # others belong to no warp
        _, writers = self.cells.writers(stored)
        if self.stores.lacking(stored, _one(block), writers, warp):
            raise Fault("touches what was stored without tcgen05.wait::st")

    def note_read(self, cells: Array, block: int, warp: int) -> None:
        """Like ``Shared.note_read``."""
        at = cells.reshape(-1) * CELL
        self.cells.note_read(at, _one(block), _one(warp), CELL, "tensor memory")

    def note_write(self, cells: Array, block: int, warp: int) -> None:
        """Like ``Shared.note_write``, and check that loads from these cells were waited for."""
        if self.loading[cells].any():
            raise Fault("overwrites what was loaded without tcgen05.wait::ld")
        at = cells.reshape(-1) * CELL
        self.cells.note_write(at, _one(block), _one(warp), CELL, "tensor memory")


def _one(number: int) -> Array:
    return np.full(1, number)
