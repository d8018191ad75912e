"""The Triton kernels compiled without a GPU: which, for what, and what is asserted of them."""

from __future__ import annotations
