"""The former path of ``torch_revdeq.runtime.deferred``; to be removed in the next release."""

from __future__ import annotations

import warnings

from .runtime.deferred import RangeError, ReconstructionError

__all__ = ["RangeError", "ReconstructionError"]

warnings.warn(
    "torch_revdeq.verification has moved: import from torch_revdeq itself",
    DeprecationWarning,
    stacklevel=2,
)
