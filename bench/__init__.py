"""Benchmarks: `python -m bench` runs them, `bench/README.md` and the pages beside it explain them.

`suite.py` names them all. `core/` is what they share: a run, clocks, cases, the ceilings, stored
lines. `ops/`, `cell/`, `solver/` and `profile/` measure, and `show/` makes tables, figures, the
page and the documents of what they have stored.
"""

from __future__ import annotations

import importlib.util
import os
import time

BEGIN = time.monotonic()
"""When this process began to import the benchmarks: the time of a run is counted from here."""

MISSING = [
    name for name in ("markdown_it", "matplotlib", "rich") if importlib.util.find_spec(name) is None
]
if MISSING:
    raise ModuleNotFoundError(
        f"the benchmarks need {', '.join(MISSING)}: pip install '.[bench]' in the clone"
    )

# torch's C++ side warns of every profile that memory was there before it.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
