"""The solves of the equilibrium cell that a run measures, and what a line says of one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.cell.columns import NAME
from bench.cell.methods import ACT, BETA, TIMED, Problem, make
from bench.core.session import Record, Session

# torch.compile takes time that grows with the steps, which it unrolls.
STEPS = {"quick": (2,), "default": (4,), "full": (4,)}
FEATURES = {"cuda": (64, 128), "cpu": (64, 128, 256, 512)}
ALL_ROWS = {"cuda": tuple(2**k for k in range(10, 21)), "cpu": (2**12,)}
FEW_ROWS = {"cuda": (2**10, 2**14, 2**18), "cpu": (2**12,)}
QUICK_ROWS = (64,)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Size:
    """One solve: what is done of it, its parameters' type, features, rows, steps and threads."""

    part: str
    dtype: torch.dtype
    features: int
    rows: int
    steps: int
    threads: int | None = None

    def problem(self, device: torch.device) -> Problem:
        """Its tensors."""
        return make(self.features, self.rows, self.steps, self.dtype, device)


def sizes(session: Session) -> list[Size]:
    """What the run measures."""
    chosen, kind = session.chosen, session.device.type
    full = session.tier == "full"
    rows = (ALL_ROWS if full else FEW_ROWS)[kind]
    every_dtype = full or kind == "cpu"
    return [
        Size(part, DTYPES[name], features, count, steps, threads)
        for threads in session.thread_counts
        for features in chosen.features or FEATURES[kind][: None if full else 1]
        for name in chosen.dtypes or tuple(DTYPES)[0 if every_dtype else 1 :]
        for part in TIMED
        for steps in chosen.depths or STEPS[session.tier]
        for count in chosen.rows or (QUICK_ROWS if session.tier == "quick" else rows)
    ]


def about_of(size: Size) -> Record:
    """What a line says of any figure."""
    name = str(size.dtype).removeprefix("torch.")
    return {
        "benchmark": NAME,
        "part": size.part,
        "op": "linear cell",
        "features": size.features,
        "rows": size.rows,
        "elements": size.rows * size.features,
        "steps": size.steps,
        "beta": BETA,
        "act": ACT,
        "dtypes": {"w": name, "u": name},
        "threads": size.threads,
        "refused": None,
    }
