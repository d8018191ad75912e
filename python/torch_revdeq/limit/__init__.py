"""The fixed point itself, and implicit derivatives; what a solver of one's own is made of."""

from __future__ import annotations

from .broyden import Broyden
from .solvers import Anderson, FixedPointSolver, Map, Picard, Relaxed, Run, relative_residual

__all__ = [
    "Anderson",
    "Broyden",
    "FixedPointSolver",
    "Map",
    "Picard",
    "Relaxed",
    "Run",
    "relative_residual",
]
