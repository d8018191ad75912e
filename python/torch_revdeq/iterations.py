"""The former path of ``torch_revdeq.limit.solvers``; to be removed in the next release."""

from __future__ import annotations

import warnings

from .limit.solvers import Anderson, Picard, Relaxed

__all__ = ["Anderson", "Picard", "Relaxed"]

warnings.warn(
    "torch_revdeq.iterations has moved: import from torch_revdeq itself",
    DeprecationWarning,
    stacklevel=2,
)
