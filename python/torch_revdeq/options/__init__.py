"""The options of ``solve``: one table, the values they may have, and what only a call knows."""

from __future__ import annotations
