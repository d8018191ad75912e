"""The ops, one file each: definition, argument checks, and the public function.

Each public function calls ``torch.ops.revdeq.<name>`` (schema in ``csrc/ops.h``), or the same op of
the selected Python backend (``core/backends.py``). Support for autograd, fake tensors and
torch.compile is in ``core/op.py`` and ``core/registration.py``.

The definitions are written for readability: they run on any device and allocate freely. They expect
arguments that are already checked. Every kernel must return the same result as its definition, bit
for bit.

A state of several leaves is passed as a list of tensors, and so is every other per-leaf tensor. One
launch (on a GPU, one per 16 leaves of the same dtypes) then processes all leaves. All lists have
the same length; the leaves may differ in shape and dtype, but are on one device.
"""

from __future__ import annotations

# In the order of the tables in the documentation.
# isort: skip_file
from .half_step import invert_, update_
from .exact_step import invert_exact_, update_exact_
from .conversion import dequantize, quantize
from .adjoint import adjoint_
from .passes import (
    invert_y_adjoint_z0_,
    invert_y_adjoint_z0_exact_,
    invert_y_adjoint_z_,
    invert_y_adjoint_z_exact_,
    invert_z_adjoint_y_,
    invert_z_adjoint_y_exact_,
)
from .residual import residual

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
