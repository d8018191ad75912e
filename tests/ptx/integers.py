"""Integers of PTX types as bits, and instructions compared to Python's integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.harness import TYPES, apply

Array = NDArray[Any]


def bits_of(kind: str) -> int:
    return int(kind.lstrip("busf"))


def integers(kind: str, columns: int = 1, seed: int = 0, count: int = 300) -> list[Array]:
    """Bits: the limits of the range in all combinations, small numbers, and arbitrary ones."""
    bits, rng = bits_of(kind), np.random.default_rng(seed)
    dtype = np.dtype(f"u{bits // 8}")
    top = 1 << (bits - 1)
    edges = np.array([0, 1, 2, 3, top - 1, top, top + 1, 2 * top - 2, 2 * top - 1], dtype)
    mesh = [axis.reshape(-1) for axis in np.meshgrid(*[edges] * columns)]
    return [
        np.concatenate(
            [
                edge,
                rng.integers(0, 2 * top, count, dtype=dtype),
                rng.integers(-40, 40, count).astype(dtype),
                rng.integers(0, 2 * top, count, dtype=dtype)
                >> rng.integers(0, bits, count).astype(dtype),
            ]
        )
        for edge in mesh
    ]


def number(bits: int, kind: str) -> int:
    """The integer with these bits."""
    width = bits_of(kind)
    return bits - (1 << width) if kind[0] == "s" and bits >> (width - 1) else bits


def check(
    op: str, kinds: list[str], to: str, function: Callable[..., int], columns: list[Array]
) -> None:
    """Assert that the instruction computes the function, modulo 2 to the width of `to`."""
    found = apply(op, TYPES[bits_of(to)], *columns)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    expected = [
        function(*(number(x, kind) for x, kind in zip(row, kinds, strict=True)))
        % (1 << bits_of(to))
        for row in rows
    ]
    wrong = [k for k, (x, y) in enumerate(zip(found.tolist(), expected, strict=True)) if x != y]
    assert not wrong, (op, [int(c[wrong[0]]) for c in columns], found[wrong[0]], expected[wrong[0]])
