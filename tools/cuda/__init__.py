"""What nvcc made of the CUDA kernels: registers, spills, width of accesses."""

from __future__ import annotations
