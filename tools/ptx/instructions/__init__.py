"""One function per instruction, one file per family; ``registry.py`` finds them."""

from __future__ import annotations

from tools.ptx.instructions import (
    arithmetic,
    atomics,
    bits,
    comparison,
    conversion,
    floats,
    matrix,
    mbarrier,
    memory_access,
    moves,
    proxy,
    tcgen05,
    warps,
    wgmma,
)
from tools.ptx.instructions.registry import find

__all__ = [
    "arithmetic",
    "atomics",
    "bits",
    "comparison",
    "conversion",
    "find",
    "floats",
    "matrix",
    "mbarrier",
    "memory_access",
    "moves",
    "proxy",
    "tcgen05",
    "warps",
    "wgmma",
]
