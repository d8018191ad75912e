"""Deprecated path of ``revdeq_kernels.core.backends``; removed in the next release."""

from __future__ import annotations

import sys
import warnings

from .core import backends

warnings.warn(
    "revdeq_kernels.backends has moved: import from revdeq_kernels itself",
    DeprecationWarning,
    stacklevel=2,
)
sys.modules[__name__] = backends
