"""The graph breaks of the solver."""

from __future__ import annotations

from collections.abc import Callable

BREAKS: list[Callable[[], None]] = []
"""Functions that create each break on first use, because that imports the compiler."""
