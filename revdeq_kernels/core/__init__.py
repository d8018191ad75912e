"""What every op has: its checks, a call from Python, backends, how torch sees it."""

from __future__ import annotations
