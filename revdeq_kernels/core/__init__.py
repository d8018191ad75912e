"""Infrastructure shared by all ops: checks, Python calls, backends, registration with torch."""

from __future__ import annotations
