"""The fixed point itself, and implicit derivatives."""

from __future__ import annotations
