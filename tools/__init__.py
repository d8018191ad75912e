"""Tools that check and publish the project; they are not installed with the package."""

from __future__ import annotations
