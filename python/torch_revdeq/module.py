"""The former path of ``torch_revdeq.layer``; to be removed in the next release."""

from __future__ import annotations

import warnings

from .layer import RevDEQ

__all__ = ["RevDEQ"]

warnings.warn(
    "torch_revdeq.module has moved: import from torch_revdeq itself",
    DeprecationWarning,
    stacklevel=2,
)
