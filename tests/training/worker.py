"""One rank of ``test_distributed``, started by torchrun: trains the runs of a folder.

    torchrun --standalone --nproc-per-node 2 -m tests.training.worker FOLDER [compiled | killed]

RUNS defines the runs, by the name of their folder in FOLDER. Losses are logged there.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor

from tests.training.toy import toy, trainer
from training.parallel import placed

ALIKE: dict[str, Any] = {"model": {"dropout": 0.2}, "random_depth": (1, 3), "micro_batch": 4}
"""One process takes both parts of a batch, or two processes take one each. The data is the same,
and so are the sums of gradients: the two parts are halved first, which is exact."""

RUNS: dict[str, Any] = {
    "ddp": {"parallel": "ddp", **ALIKE},
    "fsdp": {"parallel": "fsdp", **ALIKE},
    "ddp, accumulation": {"parallel": "ddp", **ALIKE, "micro_batch": 2},
    "fsdp, accumulation": {"parallel": "fsdp", **ALIKE, "micro_batch": 2},
    "ddp, one part": {"parallel": "ddp"},
    "fsdp, one part": {"parallel": "fsdp"},
    "fsdp, tol": {"parallel": "fsdp", "model": {"tol": 0.1, "steps": 6}},
}
"""Options of ``toy``."""

COMPILED = ("ddp, one part", "fsdp, one part", "fsdp, tol")
"""The runs that are also compiled: those without dropout, because inductor draws other masks."""

RESUMED = {"ddp, resumed": "ddp", "fsdp, resumed": "fsdp"}
"""Runs in folders that already contain a checkpoint of one process."""


def run_of(name: str) -> Any:
    """The run with this name."""
    return toy(**RUNS[RESUMED.get(name, name)])


def main(folder: str) -> None:
    """Train all runs."""
    torch.set_num_threads(1)
    with placed(run_of("ddp").training) as place:
        for name in (*RUNS, *RESUMED):
            resume = "latest" if name in RESUMED else None
            run = trainer(run_of(name), Path(folder, name), resume, place)
            sharded = [isinstance(p, DTensor) for p in run.model.parameters()]
            assert all(sharded) if run.training.parallel == "fsdp" else not any(sharded)
            run.train()


def compiled(folder: str) -> None:
    """The runs in COMPILED, with torch.compile."""
    torch.set_num_threads(1)
    with placed(run_of("ddp").training) as place:
        for name in COMPILED:
            torch.compiler.reset()
            counters.clear()
            run = trainer(toy(**RUNS[name], compile=True), Path(folder, name), place=place)
            run.train()
            assert counters["stats"]["unique_graphs"] > 0


def killed(folder: str) -> None:
    """A run whose second process is killed after the fourth of six updates."""

    def on_update(update: int) -> None:
        if update == 4 and place.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    run = run_of("ddp")
    run = dataclasses.replace(run, training=dataclasses.replace(run.training, updates=60))
    with placed(run.training) as place:
        trainer(run, Path(folder), place=place).train(on_update)


if __name__ == "__main__":
    {"": main, "compiled": compiled, "killed": killed}["".join(sys.argv[2:])](sys.argv[1])
