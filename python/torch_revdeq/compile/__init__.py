"""A solve under torch.compile and torch.export."""

from __future__ import annotations
