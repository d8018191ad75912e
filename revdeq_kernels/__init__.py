"""Fused, exactly invertible kernels for reversible deep equilibrium models.

The ops perform one half step of the pair update of arXiv 2509.12917 in place, forwards and back:
``update_`` and ``invert_`` on floating-point states, ``update_exact_`` and ``invert_exact_`` on
fixed-point states that come back bit for bit; and the passes of the backward pass over them.
Importing this package registers them as
``torch.ops.revdeq.*``; ``python -m revdeq_kernels.info`` says what was built and what can run.
"""

from __future__ import annotations

from .core import backends, registration

__version__ = "0.1.0"

backends.load_compiled()
registration.register()

from .core.backends import available_backends, backend  # noqa: E402
from .exact_numbers import digit_base, digit_bytes, effective_beta  # noqa: E402
from .ops.cell.linear_cell import linear_cell_backward, linear_cell_forward  # noqa: E402
from .ops.half_step import (  # noqa: E402
    dequantize,
    invert_,
    invert_exact_,
    quantize,
    residual,
    update_,
    update_exact_,
)
from .ops.passes import (  # noqa: E402
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
    "available_backends",
    "backend",
    "dequantize",
    "digit_base",
    "digit_bytes",
    "effective_beta",
    "invert_",
    "invert_exact_",
    "invert_y_adjoint_z0_",
    "invert_y_adjoint_z0_exact_",
    "invert_y_adjoint_z_",
    "invert_y_adjoint_z_exact_",
    "invert_z_adjoint_y_",
    "invert_z_adjoint_y_exact_",
    "linear_cell_backward",
    "linear_cell_forward",
    "quantize",
    "residual",
    "update_",
    "update_exact_",
]
