"""The pair (y, z) in each format: exact, floating point, and unrolled for programs."""

from __future__ import annotations
