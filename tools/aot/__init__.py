"""Ahead-of-time compilation of the Triton kernels without a GPU, and checks of the result."""

from __future__ import annotations
