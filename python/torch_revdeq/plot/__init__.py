"""Figures of solves: how they converge, and what depth costs. Needs matplotlib.

matplotlib is imported when something is drawn, and pyplot never: no window opens, and the figures
and settings of a notebook stay as they are.
"""

from __future__ import annotations

from .convergence import residuals
from .cost import depth
from .measured import Depth

__all__ = ["Depth", "depth", "residuals"]
