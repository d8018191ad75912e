"""Fused, exactly invertible kernels for reversible deep equilibrium models.

The ops perform one half step of the pair update of arXiv 2509.12917 in place, forward or in
reverse: ``update_`` and ``invert_`` on floating-point states, ``update_exact_`` and
``invert_exact_`` on fixed-point states, which are reconstructed bit for bit. Further ops fuse an
inverse half step with its part of the backward pass. Importing this package registers them as
``torch.ops.revdeq.*``; ``python -m revdeq_kernels.info`` prints what was built and what can run.
"""

from __future__ import annotations

import importlib
from typing import Any

from .core import backends, registration

__version__ = "0.1.0"

backends.load_compiled()

from . import ops  # noqa: E402
from .core.backends import available_backends, backend  # noqa: E402
from .exact_numbers import digit_base, digit_bytes, effective_beta  # noqa: E402
from .ops import *  # noqa: E402, F403

registration.register()

from .ops.cell.linear_cell import linear_cell_backward, linear_cell_forward  # noqa: E402

__all__ = [
    "available_backends",
    "backend",
    "digit_base",
    "digit_bytes",
    "effective_beta",
    "linear_cell_backward",
    "linear_cell_forward",
]
__all__ += ops.__all__


def __getattr__(name: str) -> Any:
    """Import a submodule by its old name; those that moved emit a DeprecationWarning."""
    if name in ("fixed_point", "linear_cell", "passes", "reference"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, "__doc__", "__version__"})
