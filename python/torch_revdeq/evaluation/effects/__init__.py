"""What f holds, and which parts an evaluation writes."""

from __future__ import annotations
