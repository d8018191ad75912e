"""Launches of the Triton kernels: the ops of the backend, by name."""

from __future__ import annotations

from .half_step import (
    dequantize,
    invert_,
    invert_exact_,
    quantize,
    residual,
    update_,
    update_exact_,
)
from .passes import (
    adjoint_,
    invert_y_adjoint_z0_,
    invert_y_adjoint_z0_exact_,
    invert_y_adjoint_z_,
    invert_y_adjoint_z_exact_,
    invert_z_adjoint_y_,
    invert_z_adjoint_y_exact_,
)

__all__ = [
    "adjoint_",
    "dequantize",
    "invert_",
    "invert_exact_",
    "invert_y_adjoint_z0_",
    "invert_y_adjoint_z0_exact_",
    "invert_y_adjoint_z_",
    "invert_y_adjoint_z_exact_",
    "invert_z_adjoint_y_",
    "invert_z_adjoint_y_exact_",
    "quantize",
    "residual",
    "update_",
    "update_exact_",
]
