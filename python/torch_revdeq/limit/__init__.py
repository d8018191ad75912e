"""The fixed point and its implicit gradient; what you need to write your own solver."""

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
