"""Reversible deep equilibrium models in PyTorch (arXiv 2509.12917).

``solve`` iterates any f to its equilibrium and differentiates exactly, at memory that does not grow
with the number of steps; ``RevDEQ`` is the layer. The ops underneath are in ``revdeq_kernels``.
"""

from __future__ import annotations

from .boundary import CaptureError
from .fixed_point import FixedPoint, FixedPointStats, fixed_point
from .graphed import graphed
from .iterations import Anderson, Picard, Relaxed
from .linear_cell import LinearCell
from .module import RevDEQ
from .regularization import jacobian_penalty, spectral_radius
from .solution import Solution, Stats
from .solve import solve
from .verification import RangeError, ReconstructionError

__all__ = [
    "Anderson",
    "CaptureError",
    "FixedPoint",
    "FixedPointStats",
    "LinearCell",
    "Picard",
    "RangeError",
    "ReconstructionError",
    "Relaxed",
    "RevDEQ",
    "Solution",
    "Stats",
    "fixed_point",
    "graphed",
    "jacobian_penalty",
    "solve",
    "spectral_radius",
]
