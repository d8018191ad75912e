"""The forward pass: beta, the loop, the stopping criterion, and per-sample halting."""

from __future__ import annotations
