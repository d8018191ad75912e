"""Reversible deep equilibrium models in PyTorch (arXiv 2509.12917).

``solve`` iterates any f to its equilibrium and differentiates exactly, at memory that does not grow
with the number of steps; ``RevDEQ`` is the layer. The ops underneath are in ``revdeq_kernels``.
"""

from __future__ import annotations

from .captures import CaptureError
from .module import RevDEQ
from .regularization import jacobian_penalty, spectral_radius
from .solution import Solution, Stats
from .solve import solve
from .verification import RangeError, ReconstructionError

__all__ = [
    "CaptureError",
    "RangeError",
    "ReconstructionError",
    "RevDEQ",
    "Solution",
    "Stats",
    "jacobian_penalty",
    "solve",
    "spectral_radius",
]
