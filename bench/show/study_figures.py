"""The figures of the two studies in examples/, from the lines that they stored in docs/."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.core import machine

STUDY, REASONING = (machine.ROOT / "docs" / f"{name}.jsonl" for name in ("study", "reasoning"))
VALUES = {"text": "bits_per_byte", "image": "accuracy"}


def study() -> dict[str, Any]:
    """By task and method: evaluations of the cell, and the figure of each run."""
    found: dict[str, Any] = {}
    for record in _records(STUDY):
        beta = f", beta {record['beta']:g}" if record["method"] == "reversible" else ""
        line = found.setdefault(f"{record['task']}, {record['method']}{beta}", [])
        line.append([record["evaluations"], float(f"{record[VALUES[record['task']]]:.4g}")])
    return found


def reasoning() -> dict[str, Any]:
    """By method and seed: updates, CPU seconds and accuracy of each evaluation."""
    found: dict[str, Any] = {}
    for record in _records(REASONING):
        if "way" in record:
            line = found.setdefault(f"{record['way']}, seed {record['seed']}", [])
            line.append([record["update"], record["seconds"], record["accuracy"]])
    return found


def draw_study(path: Path) -> None:
    """Accuracy and bits per byte against evaluations of the cell."""
    module = _example("study")
    module.draw(module.read(STUDY), path)


def draw_reasoning(path: Path) -> None:
    """Puzzles solved against updates and against time."""
    module = _example("study_reasoning")
    module.draw(module.read(REASONING), path)


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _example(name: str) -> ModuleType:
    """A script, which finds its neighbors by the path of its folder."""
    folder = str(machine.ROOT / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
