"""Deprecated path of ``revdeq_kernels.ops``; removed in the next release."""

from __future__ import annotations

import sys
import warnings

from . import ops

warnings.warn(
    "revdeq_kernels.passes has moved: import from revdeq_kernels itself",
    DeprecationWarning,
    stacklevel=2,
)
sys.modules[__name__] = ops
