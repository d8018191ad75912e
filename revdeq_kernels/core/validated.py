"""The GPU kernels tested on hardware; `python -m bench.visit keep` writes this table."""

from __future__ import annotations

VALIDATED: dict[tuple[str, str], frozenset[str]] = {}
"""(backend, architecture such as "sm_90") -> names of the ops whose `gpu` tests passed there."""
