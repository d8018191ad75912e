"""Benchmarks: `python -m bench` runs them, `bench/README.md` and the pages beside it explain them.

`suite.py` names them all, `session.py` is what a run hands to each: `ceilings.py`, `ops.py`,
`cell/`, `solver/`. `ops.py` runs the cases of `benchmarks/` by `harness.py`; `case.py` holds what a
file there hands over. `families.py` says how stored lines are read; `figures.py` draws them,
`html.py` makes a page of them, `compare.py` holds them to those of an earlier run, and `readme.py`
writes the tables of the documents.
"""

from __future__ import annotations

import os

# torch's C++ side warns of every profile that memory was there before it.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
