"""Reversible deep equilibrium models in PyTorch (arXiv 2509.12917).

``solve`` iterates any f towards its equilibrium and gives the exact gradient of the steps taken,
without storing activations; ``RevDEQ`` is the layer. The ops are in ``revdeq_kernels``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from revdeq_kernels import __version__ as __version__

from .cell.linear import LinearCell
from .evaluation.adjoint import Adjoint
from .evaluation.boundary import CaptureError
from .graphed import graphed
from .iteration.stopping import StoppingRule
from .layer import RevDEQ, set_solver
from .runtime.deferred import RangeError, ReconstructionError
from .solution import Solution, Stats
from .solver import solve

if TYPE_CHECKING:
    from .limit.broyden import Broyden
    from .limit.fixed_point import fixed_point
    from .limit.result import FixedPoint, FixedPointStats
    from .limit.solvers import Anderson, FixedPointSolver, Picard, Relaxed
    from .regularization import jacobian_penalty, spectral_radius

__all__ = [
    "Adjoint",
    "Anderson",
    "Broyden",
    "CaptureError",
    "FixedPoint",
    "FixedPointSolver",
    "FixedPointStats",
    "LinearCell",
    "Picard",
    "RangeError",
    "ReconstructionError",
    "Relaxed",
    "RevDEQ",
    "Solution",
    "Stats",
    "StoppingRule",
    "fixed_point",
    "graphed",
    "jacobian_penalty",
    "set_solver",
    "solve",
    "spectral_radius",
]

_LATER = {
    "limit.fixed_point": ("fixed_point",),
    "limit.result": ("FixedPoint", "FixedPointStats"),
    "limit.broyden": ("Broyden",),
    "limit.solvers": ("Anderson", "FixedPointSolver", "Picard", "Relaxed"),
    "regularization": ("jacobian_penalty", "spectral_radius"),
}
"""Names that ``solve`` does not need: imported on first access."""

_PACKAGES = ("adjoints", "models", "plot", "testing")
"""The public modules, which ``dir`` lists in addition to ``__all__``."""


def __getattr__(name: str) -> Any:
    if name in ("limit", "regularization"):
        for module in _LATER:
            importlib.import_module(f".{module}", __name__)
    if name in ("limit", "regularization", *_PACKAGES):
        return importlib.import_module(f".{name}", __name__)
    for module, names in _LATER.items():
        if name in names:
            value = getattr(importlib.import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES, "__version__", "__doc__"})
