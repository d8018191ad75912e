"""Benchmarks: `python -m bench` runs them; `bench/README.md` and its neighbors explain them.

`suite.py` lists them all. `core/` has what they share: a run, clocks, cases, the ceilings, stored
rows. `ops/`, `cell/`, `solver/` and `profile/` measure; `show/` turns the stored rows into tables,
figures, the report and the documents.
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
