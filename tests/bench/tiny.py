"""Sizes at which a training step of the benchmark's cells takes a millisecond."""

from __future__ import annotations

from bench.solver.models import Images, Sizes, Text

TINY = Sizes(16, 24, Text(16, 2, 8, 2), Text(16, 2, 8, 2), Images(16, 4, 2))
