"""Deprecated path of ``revdeq_kernels.ops.cell.linear_cell``; removed in the next release."""

from __future__ import annotations

import sys
import warnings

from .ops.cell import linear_cell

warnings.warn(
    "revdeq_kernels.linear_cell has moved: import from revdeq_kernels itself",
    DeprecationWarning,
    stacklevel=2,
)
sys.modules[__name__] = linear_cell
