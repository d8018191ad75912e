"""The error that stops a run, for the person who started it."""

from __future__ import annotations


class RunError(Exception):
    """A run cannot start or continue. The message says why, and how to fix it."""
