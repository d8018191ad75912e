"""The tests, in folders by layer: ``conftest.py`` has what all share, ``tolerances.py`` bounds."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The root of the source tree, or of the copy of it that holds the tests."""
