"""Checks of the compiled CUDA kernels: registers, spills, width of accesses."""

from __future__ import annotations
