"""The pair (y, z) in each format: exact, in floating point, and as a compiled graph holds it."""

from __future__ import annotations
