"""Plots of solves: convergence, and the cost of depth. Needs matplotlib.

matplotlib is imported when something is drawn. pyplot is never imported: no window opens, and a
notebook's figures and settings are unaffected.
"""

from __future__ import annotations

from .convergence import residuals
from .cost import depth
from .measured import Depth

__all__ = ["Depth", "depth", "residuals"]
