"""The former path of ``torch_revdeq.evaluation.boundary``; to be removed in the next release."""

from __future__ import annotations

import warnings

from .evaluation.boundary import CaptureError

__all__ = ["CaptureError"]

warnings.warn(
    "torch_revdeq.boundary has moved: import from torch_revdeq itself",
    DeprecationWarning,
    stacklevel=2,
)
