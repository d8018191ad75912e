"""The graph breaks of the solver, and the solver itself, for modules loaded by a compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BREAKS: list[Callable[[], None]] = []
"""Functions that create each break on first use, because that imports the compiler."""

SOLVER: list[Callable[..., Any]] = []
"""``solve``, from a layer above."""
