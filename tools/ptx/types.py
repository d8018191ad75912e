"""PTX's fundamental types as NumPy's dtypes.

Types that NumPy lacks are stored as bits: bf16 and tf32, packed pairs, and 128-bit values, which
are only moved and stored as complex numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""Values of a register: one element per thread, or a single one for all threads."""

UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)} | {16: np.dtype(np.complex128)}
SIGNED = {size: np.dtype(f"i{size}") for size in (1, 2, 4, 8)}

DTYPES: dict[str, np.dtype[Any]] = {
    "pred": np.dtype(np.bool_),
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "b128": UNSIGNED[16],
    "bf16": UNSIGNED[2],
    "tf32": UNSIGNED[4],
    "f16x2": UNSIGNED[4],
    "bf16x2": UNSIGNED[4],
    "f32x2": UNSIGNED[8],
}
for _size in (1, 2, 4, 8):
    DTYPES[f"u{8 * _size}"] = DTYPES[f"b{8 * _size}"] = UNSIGNED[_size]
    DTYPES[f"s{8 * _size}"] = SIGNED[_size]


def size_of(kind: str) -> int:
    """Bytes of a type; a predicate has none of its own and counts as one."""
    return DTYPES[kind].itemsize
