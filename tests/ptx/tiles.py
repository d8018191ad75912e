"""Factors in shared memory, in the swizzled layouts of the figures in PTX ISA 9.7.15.5.1.2."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WGMMA = {128: 1 << 62, 64: 2 << 62, 32: 3 << 62}
TCGEN05 = {128: 2 << 61 | 1 << 46, 64: 4 << 61 | 1 << 46, 32: 6 << 61 | 1 << 46}
"""The descriptor bits for the swizzling mode, by bytes per row of an atom."""

ROWS_OF_A_CHUNK = {128: 1, 64: 2, 32: 4}
"""The number of rows of an atom with the same order of 16-byte chunks."""


class Tile(NamedTuple):
    """A factor's bits in shared memory, and its descriptor without the start address."""

    bits: NDArray[Any]
    constant: int


def tile(elements: NDArray[Any], span: int, k_major: bool, modes: dict[int, int]) -> Tile:
    """Lay out a factor [rows, k] of 16 or 32 bits; `rows` are those of A, or the columns of B."""
    size, (rows, depth) = elements.itemsize, elements.shape
    per_row = span // size
    atom = 8 * span
    if k_major:
        assert depth <= per_row
        lead, stride, total = 0, 2 * atom, 2 * atom * -(-rows // 8)
    else:
        lead, stride = atom, atom * (-(-rows // per_row) + 1)
        total = stride * -(-depth // 8)
    bits = np.zeros(total // size, elements.dtype)
    for row in range(rows):
        for k in range(depth):
            if k_major:
                begin, line, byte = row // 8 * stride, row % 8, k * size
            else:
                begin = row // per_row * lead + k // 8 * stride
                line, byte = k % 8, row % per_row * size
            chunk = byte // 16 ^ line // ROWS_OF_A_CHUNK[span]
            bits[(begin + line * span + chunk * 16 + byte % 16) // size] = elements[row, k]
    return Tile(bits, modes[span] | lead // 16 << 16 | stride // 16 << 32)


def descriptor(register: int, offset: int, constant: int) -> list[str]:
    """%d[register]: the descriptor of a tile at this offset in shared memory."""
    return [
        "mov.u32 %v508, shared;",
        f"add.s32 %v508, %v508, {offset};",
        "bfe.u32 %v508, %v508, 4, 14;",
        f"cvt.u64.u32 %d{register}, %v508;",
        f"or.b64 %d{register}, %d{register}, {constant};",
    ]


def placed(tiles: list[Tile]) -> tuple[NDArray[Any], list[int]]:
    """Tiles as words, each at a multiple of 1024 bytes, and their offsets."""
    begins, words = [], [np.zeros(0, np.uint32)]
    for one in tiles:
        begins.append(4 * sum(map(len, words)))
        raw = one.bits.view(np.uint32)
        words.append(np.pad(raw, (0, -len(raw) % 256)))
    return np.concatenate(words), begins
