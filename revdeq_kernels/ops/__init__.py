"""The ops, a file each: the definition, what is asked of the arguments, the public function.

Each public function stands for ``torch.ops.revdeq.<name>`` (schema in ``csrc/ops.h``), or for
the same op of a Python backend where one was chosen (``core/backends.py``). What autograd, fake
tensors and torch.compile need beside the kernels is in ``core/op.py`` and ``core/registration.py``.

A definition is written to be read: it runs on any device, and allocates freely. Its arguments are
expected to be checked. What it returns is what each kernel must, bit for bit.

A state of several leaves is given as a list of tensors, and so is every tensor that belongs to a
leaf: one launch (on a GPU one for every 16 leaves of the same dtypes) then serves all of them. The
lists are as long as the first, the leaves of any shapes and dtypes, on one device.
"""

from __future__ import annotations

# In the order of the tables in the documents.
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
