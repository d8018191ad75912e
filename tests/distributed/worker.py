"""One rank of ``test_distributed``, started by torchrun: runs all cases and writes the outcomes.

    torchrun --standalone --nproc-per-node 2 -m tests.distributed.worker OUTCOMES FOLDER [CASE ...]

Every case has its own process group, so that a failure does not affect other cases. Afterwards, the
ranks exchange its outcome through a file. FOLDER must be empty; OUTCOMES becomes a JSON file.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]

from tests.distributed import models, replicated, sharded  # noqa: F401  (they register cases)
from tests.distributed.model import CASES, Case, rank, world

HANGS = timedelta(seconds=20)
"""Seconds after which a rank without an answer gives up on a case."""

LATE = timedelta(seconds=60)
"""Seconds after which a rank that has not given up is considered lost."""

Outcome = dict[str, Any]


def run(case: Case, store: FileStore) -> Outcome:
    """This rank's outcome of a case: its error, or the exception."""
    dist.init_process_group("gloo", store=store, rank=rank(), world_size=world(), timeout=HANGS)
    try:
        return {"error": case.run(), "exception": None}
    except Exception as exception:
        return {"error": None, "exception": f"{type(exception).__name__}: {exception}"}
    finally:
        dist.destroy_process_group()


def agreed(store: FileStore, name: str, outcome: Outcome) -> Outcome:
    """The outcome on all ranks: the largest error, or their exceptions."""
    store.set(f"{name}/{rank()}", json.dumps(outcome))
    keys = [f"{name}/{r}" for r in range(world())]
    store.wait(keys, LATE)
    outcomes = [json.loads(store.get(key)) for key in keys]
    raised = [o["exception"] for o in outcomes]
    if all(exception is None for exception in raised):
        errors = torch.tensor([o["error"] for o in outcomes], dtype=torch.float64)
        return {"error": errors.max().item(), "exception": None}  # NaN stays NaN
    if any(exception != raised[0] for exception in raised):
        raised[0] = "; ".join(f"rank {r}: {exception}" for r, exception in enumerate(raised))
    return {"error": None, "exception": raised[0]}


def main(target: str, folder: str, *names: str) -> None:
    """Run the named cases, or all."""
    torch.set_num_threads(1)
    agreement = FileStore(str(Path(folder, "agreement")), world())
    outcomes: dict[str, Outcome] = {}
    for i, name in enumerate(names or CASES):
        start = time.perf_counter()
        store = FileStore(str(Path(folder, f"case{i}")), world())
        outcomes[name] = agreed(agreement, name, run(CASES[name], store))
        if rank() == 0:
            print(f"{time.perf_counter() - start:6.2f} s  {name}: {outcomes[name]}", flush=True)
            Path(target).write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
