"""What stops a run, in words for the person who started it."""

from __future__ import annotations


class RunError(Exception):
    """A run cannot start, or cannot go on. The message says why, and what to do."""
