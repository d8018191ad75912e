"""Which thread of a warp holds which element of a matrix, and in which encoding.

PTX ISA 9.7.14.5 (fragments of mma) and 9.7.15.5.1.1 (of wgmma, whose warps hold 16 rows each, like
those of mma). `lane // 4` is the ISA's groupID, `lane % 4` its threadID_in_group. Registers are
arrays [registers, warps * 32]; matrices are float64, in which products of two factors are exact and
sums of 16 products nearly always are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BITS = {"bf16": 16, "f16": 16, "tf32": 32}
"""Bits of an element of A or B, by type; a 32-bit register holds one or two."""

_OF_TF32 = np.uint32(0xFFFFE000)
"""The bits of a float32 that TF32 uses; the others are not read."""

_OF_FLOAT32 = np.uint64(0xFFFFFFFFE0000000)
"""The bits of a float64 that a float32 represents."""


def numbers(bits: Array, kind: str) -> Array:
    """The float64 values of unsigned integers that encode numbers of type `kind`."""
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    if kind == "f16":
        return bits.view(np.float16).astype(np.float64)
    return (bits & _OF_TF32).view(np.float32).astype(np.float64)


def _elements(registers: Sequence[Array], kind: str) -> Array:
    """[registers, warps, lane // 4, lane % 4, elements of a register]."""
    words = np.stack(registers)
    bits = words.view(np.uint16) if BITS[kind] == 16 else words
    return numbers(bits, kind).reshape(len(words), -1, 8, 4, 32 // BITS[kind])


def a_fragment(registers: Sequence[Array], kind: str) -> Array:
    """A [warps, 16, k], k = 16 for elements of 16 bits and 8 for TF32, of four registers.

    Registers 0 and 2 hold row lane // 4, the others row lane // 4 + 8; 2 and 3 hold the upper half
    of k.
    """
    elements = _elements(registers, kind).reshape(2, 2, -1, 8, 4, 32 // BITS[kind])
    return elements.transpose(2, 1, 3, 0, 4, 5).reshape(elements.shape[2], 16, -1)


def b_fragment(registers: Sequence[Array], kind: str) -> Array:
    """B [warps, k, 8] of two registers: column lane // 4; the second holds the upper half of k."""
    elements = _elements(registers, kind)
    return elements.transpose(1, 0, 3, 4, 2).reshape(elements.shape[1], -1, 8)


def d_fragment(registers: Sequence[Array]) -> Array:
    """C or D [warps, 16, n] of n / 2 registers of float32, as float64.

    Of the four registers per 8 columns, 0 and 1 hold row lane // 4 at columns 2 (lane % 4) and
    2 (lane % 4) + 1; 2 and 3 hold the row 8 further down.
    """
    words = np.stack(registers).astype(np.float64).reshape(-1, 2, 2, registers[0].size // 32, 8, 4)
    return words.transpose(3, 1, 4, 0, 5, 2).reshape(words.shape[3], 16, -1)


def d_registers(matrix: Array) -> Array:
    """The registers [n / 2, warps * 32] of ``d_fragment``, for numbers of any type."""
    warps, _, n = matrix.shape
    parts = matrix.reshape(warps, 2, 8, n // 8, 4, 2)
    return parts.transpose(3, 1, 5, 0, 2, 4).reshape(n // 2, warps * 32)


def nearest(sums: Array) -> Array:
    """float32, the rounding that is assumed for sums of mma.sync."""
    return sums.astype(np.float32)


def toward_zero(sums: Array) -> Array:
    """float32, the rounding that is assumed for sums of wgmma and tcgen05.

    PTX does not specify how sums of products are rounded, nor the order of summation. Therefore
    this deliberately differs from ``nearest``: a kernel that evaluates the same product with
    mma.sync in one place and wgmma in another must not rely on the same bits, and does not get them
    here.
    """
    return (
        (np.ascontiguousarray(sums).view(np.uint64) & _OF_FLOAT32)
        .view(np.float64)
        .astype(np.float32)
    )
