"""The former path of ``torch_revdeq.cell.linear``; to be removed in the next release."""

from __future__ import annotations

import warnings

from .cell.linear import LinearCell

__all__ = ["LinearCell"]

warnings.warn(
    "torch_revdeq.linear_cell has moved: import from torch_revdeq itself",
    DeprecationWarning,
    stacklevel=2,
)
