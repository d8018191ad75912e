"""What checks and publishes the project: none of it is installed."""

from __future__ import annotations
