"""The tests, in folders by layer: ``conftest.py`` is shared, ``tolerances.py`` has the bounds."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The root of the source tree, or of a copy that contains the tests."""
