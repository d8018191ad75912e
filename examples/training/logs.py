"""Logs of a run: lines of JSON, TensorBoard if it is installed, and a progress bar."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from torch_revdeq import RevDEQ

Record = dict[str, Any]


class Log:
    """FOLDER/log.jsonl, one record per line; FOLDER/tensorboard, if tensorboard is installed.

    Args:
        folder: of the run.
        update: where the run begins. Later records, of an interrupted run, are removed.
    """

    def __init__(self, folder: Path, update: int) -> None:
        path = folder / "log.jsonl"
        kept = [record for record in read(path) if record["update"] <= update]
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text("".join(json.dumps(record) + "\n" for record in kept))
        unfinished.replace(path)
        self.file = path.open("a", buffering=1)  # write every line at once
        self.board: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=update + 1)

    def write(self, *records: Record) -> None:
        """Write records, which have the key "update"."""
        for record in records:
            self.file.write(json.dumps(record) + "\n")
            for name, value in record.items() if self.board else ():
                if isinstance(value, int | float) and name != "update":
                    self.board.add_scalar(name, value, record["update"])

    def close(self) -> None:
        """Flush and close."""
        self.file.close()
        if self.board is not None:
            self.board.close()


def read(path: Path) -> list[Record]:
    """The records of a log, without an incomplete last line of a run that was killed."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def solver_figures(layers: list[RevDEQ]) -> Record:
    """Of the last solves: total steps, largest residual and largest reconstruction error."""
    stats = [layer.stats for layer in layers if layer.stats is not None]
    errors = [s.reconstruction_error for s in stats if s.reconstruction_error is not None]
    return {
        "steps": sum(s.steps for s in stats),
        "residual": max((s.residual for s in stats), default=None),
        "reconstruction_error": max(errors, default=None),
    }


def peak_memory(device: torch.device) -> int:
    """Peak bytes so far: of the device's allocator, or on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB


class Stopwatch:
    """Throughput in units per second.

    Args:
        done: units that were done before the start.
    """

    def __init__(self, done: int) -> None:
        self.done, self.since = done, time.perf_counter()

    def rate(self, done: int) -> float:
        """Units per second since the last call."""
        now = time.perf_counter()
        rate = (done - self.done) / (now - self.since)
        self.done, self.since = done, now
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of this block."""
        begin = time.perf_counter()
        yield
        self.since += time.perf_counter() - begin


OWN = ("accuracy", "passes")
"""Additional figures that only some runs record."""


class Bar:
    """The progress bar, with the latest figures."""

    def __init__(self, update: int, updates: int, unit: str, *, shown: bool) -> None:
        columns = [TextColumn("{task.fields[text]}"), BarColumn(None), TimeRemainingColumn()]
        self.unit, self.shown = unit, shown
        self.progress = Progress(*columns, disable=not shown)
        self.task = self.progress.add_task("", total=updates, completed=update, text="")
        self.progress.start()

    def update(self, update: int, record: Record, result: Record) -> None:
        """Show an update, with the latest training record and evaluation."""
        text = f"update {update}"
        if record:
            text += f"  loss {record['loss']:.4f}  {record['per_second']:.0f} {self.unit}/s"
            text += f"  {record['peak_memory'] / 2**20:.0f} MiB"
            text += "".join(f"  {name} {record[name]:.3g}" for name in OWN if record.get(name))
            for name in ("residual", "reconstruction_error"):
                if record[name] is not None:
                    text += f"  {name.split('_')[0]} {record[name]:.0e}"
            text += "".join(f"  {name} {value:.4g}" for name, value in _shown(result).items())
        self.progress.update(self.task, completed=update, text=text)

    def say(self, result: Record) -> None:
        """Print an evaluation as a line above the bar."""
        figures = ", ".join(f"{name} {value:.4f}" for name, value in _shown(result).items())
        if self.shown:
            text = f"update {result['update']}: {figures}"
            self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Restore the terminal."""
        self.progress.stop()


def _shown(result: Record) -> Record:
    return {k.replace("_", " "): v for k, v in result.items() if k not in ("update", "kind")}
