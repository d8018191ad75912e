"""The linear cell, and solving it in one op."""

from __future__ import annotations
