"""Ways of differentiating a solve, one file each, and what they share."""

from __future__ import annotations
