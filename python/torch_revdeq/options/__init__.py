"""The options of ``solve``: the table, readers of their values, and the checks of a call."""

from __future__ import annotations
