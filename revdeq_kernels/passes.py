"""The former path of ``revdeq_kernels.ops.passes``; gone with the next release."""

from __future__ import annotations

import sys
import warnings

from .ops import passes

warnings.warn(
    "revdeq_kernels.passes has moved: import from revdeq_kernels itself",
    DeprecationWarning,
    stacklevel=2,
)
sys.modules[__name__] = passes
