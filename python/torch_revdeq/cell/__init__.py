"""The linear cell, and its solve in one op."""

from __future__ import annotations
