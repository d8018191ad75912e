"""The residual in Triton, summed in the order defined by ``reference.py``.

Bytes per element: sizeof(z) + sizeof(f), read once.
"""

# Pyright reports every call of a jitted function as an error.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from .half_step import widen_to


@triton.jit
def halve(x, COLUMNS: tl.constexpr):
    """Add the right half to the left half until one sum remains; a sum of two has no order."""
    length: tl.constexpr = COLUMNS
    for level in tl.static_range(8):
        x = tl.sum(tl.reshape(x, [2, COLUMNS >> (level + 1)]), 0)
    tl.static_assert(length == 256, "as many levels as COLUMNS has bits")
    return tl.sum(x, 0)


@triton.jit
def residual(z, f, sums, numel, part, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """The sums of one chunk, at sums[0] and sums[1]."""
    column = tl.arange(0, COLUMNS)
    difference = tl.zeros([COLUMNS], tl.float64)
    size = tl.zeros([COLUMNS], tl.float64)
    for row in tl.static_range(ROWS):
        i = part.to(tl.int64) * (COLUMNS * ROWS) + row * COLUMNS + column
        mask = i < numel
        v = widen_to(tl.load(f + i, mask=mask, other=0.0), tl.float64)
        d = widen_to(tl.load(z + i, mask=mask, other=0.0), tl.float64) - v
        difference += d * d
        size += v * v
    tl.store(sums, halve(difference, COLUMNS))
    tl.store(sums + 1, halve(size, COLUMNS))


@triton.jit
def norms(sums, result, count, COLUMNS: tl.constexpr):
    """The norms: square roots of the sums over all chunks, at result[0] and result[1]."""
    column = tl.arange(0, COLUMNS)
    difference = tl.zeros([COLUMNS], tl.float64)
    size = tl.zeros([COLUMNS], tl.float64)
    first = count * 0
    while first < count:  # the interpreter does not support range of a computed number
        i = first + column
        mask = i < count
        difference += tl.load(sums + 2 * i, mask=mask, other=0.0)
        size += tl.load(sums + 2 * i + 1, mask=mask, other=0.0)
        first += COLUMNS
    tl.store(result, tl.sqrt(halve(difference, COLUMNS)))
    tl.store(result + 1, tl.sqrt(halve(size, COLUMNS)))
