"""Deprecated path of ``revdeq_kernels.exact_numbers``; removed in the next release."""

from __future__ import annotations

import sys
import warnings

from . import exact_numbers

warnings.warn(
    "revdeq_kernels.fixed_point has moved: import from revdeq_kernels itself",
    DeprecationWarning,
    stacklevel=2,
)
sys.modules[__name__] = exact_numbers
