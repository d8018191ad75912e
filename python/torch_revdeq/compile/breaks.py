"""The graph breaks of the solver."""

from __future__ import annotations

from collections.abc import Callable

BREAKS: list[Callable[[], None]] = []
"""What makes each of them: when it is met first, for it imports the compiler."""
