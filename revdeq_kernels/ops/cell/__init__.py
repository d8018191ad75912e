"""The equilibrium cell: all steps of a linear cell in one op."""

from __future__ import annotations
