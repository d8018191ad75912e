"""The forward pass: beta, the loop, when it stops, and halting by sample."""

from __future__ import annotations
