"""f as a function of leaves, its re-evaluation under the same conditions, what it reads."""

from __future__ import annotations
