"""Reversible deep equilibrium models in PyTorch.

The solver and its layer come here. For now this package offers the ops they rest on, those of
``revdeq_kernels``: one half step of the pair update of arXiv 2509.12917, in place, and its inverse.
"""

from __future__ import annotations

from revdeq_kernels import (
    adjoint_,
    dequantize,
    digit_bytes,
    effective_beta,
    invert_,
    invert_exact_,
    quantize,
    update_,
    update_exact_,
)

__all__ = [
    "adjoint_",
    "dequantize",
    "digit_bytes",
    "effective_beta",
    "invert_",
    "invert_exact_",
    "quantize",
    "update_",
    "update_exact_",
]
