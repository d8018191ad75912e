"""What f holds, and what of it an evaluation writes."""

from __future__ import annotations
