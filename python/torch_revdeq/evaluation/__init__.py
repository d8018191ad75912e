"""f: called as a function of leaves, evaluated again as it was, and what it reads and returns."""

from __future__ import annotations
