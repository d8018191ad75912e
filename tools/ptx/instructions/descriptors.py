"""The location of a factor in shared memory, decoded from a descriptor of wgmma or tcgen05.

PTX ISA 9.7.15.5.1.2 (wgmma) and 9.7.16.4.1 with 9.7.16.3 (tcgen05). Both describe the same tiles:
atoms of 8 rows of 32, 64 or 128 bytes, in which 16-byte pieces are swizzled; they differ in the
encoding.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tools.ptx.errors import Fault, Missing
from tools.ptx.instructions.fragments import BITS

_SPAN_OF_WGMMA = {1: 128, 2: 64, 3: 32}
_SPAN_OF_TCGEN05 = {2: 128, 4: 64, 6: 32}
"""Bytes per row of an atom, by swizzling mode; layouts without swizzling are not modeled."""

_VERSION = 1
"""The version of a descriptor for tcgen05."""


class Descriptor(NamedTuple):
    """A tile of a factor, in bytes.

    `lead` is the distance between atoms along the rows of a factor that is not K-major. `stride` is
    the distance between groups of 8 rows (K-major) or of 8 numbers of each sum (otherwise).
    """

    start: int
    lead: int
    stride: int
    span: int

    @classmethod
    def of_wgmma(cls, bits: int) -> Descriptor:
        """Decode a descriptor of wgmma."""
        if bits >> 49 & 7:
            raise Missing("a base offset")
        return cls._decoded(bits, _SPAN_OF_WGMMA.get(bits >> 62))

    @classmethod
    def of_tcgen05(cls, bits: int) -> Descriptor:
        """Decode a descriptor of tcgen05."""
        if bits >> 46 & 7 != _VERSION:
            raise Fault(f"a descriptor of version {bits >> 46 & 7}, not {_VERSION}")
        if bits >> 49 & 0xFFF:
            raise Missing("a base offset, or an absolute leading dimension")
        return cls._decoded(bits, _SPAN_OF_TCGEN05.get(bits >> 61))

    @classmethod
    def _decoded(cls, bits: int, span: int | None) -> Descriptor:
        if span is None:
            raise Missing("a swizzling mode")
        start, lead, stride = (16 * (bits >> shift & 0x3FFF) for shift in (0, 16, 32))
        return cls(start, lead, stride, span)


class Form(NamedTuple):
    """Form of a factor: rows of A or columns of B, numbers per sum, their type, and their order."""

    rows: int
    depth: int
    kind: str
    k_major: bool


class Footprint(NamedTuple):
    """Location of a factor: the offset of each element [rows, depth], and what it touches."""

    elements: NDArray[Any]
    granules: NDArray[Any]


@lru_cache(maxsize=512)
def footprint(tile: Descriptor, form: Form, granule: int) -> Footprint:
    """The location of a factor; ValueError if it exceeds the atoms of the descriptor."""
    size = BITS[form.kind] // 8
    row, k = np.arange(form.rows)[:, None], np.arange(form.depth)[None, :]
    if form.k_major:
        if tile.start % tile.span + form.depth * size > tile.span:
            raise ValueError(f"sums over {form.depth} numbers leave their atom: {tile}")
        at = tile.start + row // 8 * tile.stride + row % 8 * tile.span + k * size
    else:
        along = tile.span // size
        at = tile.start + row // along * tile.lead + row % along * size
        at = at + k // 8 * tile.stride + k % 8 * tile.span
    at ^= (at >> 7 & tile.span // 16 - 1) << 4
    touched = at[..., None] + np.arange(0, size, min(size, granule))
    return Footprint(at // size, np.unique(touched // granule))
