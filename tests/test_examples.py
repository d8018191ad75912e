"""The examples run as a reader runs them, and reach what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parent.parent / "examples" / "quickstart.py"

LAST_LINE = re.compile(
    r"test accuracy ([\d.]+)%, (\d+) steps, "
    r"peak memory ([\d.]+) MiB (\w+) against ([\d.]+) MiB backprop \(([\d.]+)x\), "
    r"reconstruction error (.+)"
)


def quickstart(*options: str) -> subprocess.CompletedProcess[str]:
    # One thread: the cell is small, and on a busy machine two wait for each other.
    return subprocess.run(
        [sys.executable, str(QUICKSTART), "--device", "cpu", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )


def last_line(*options: str) -> tuple[str, ...]:
    run = quickstart(*options)
    assert run.returncode == 0, run.stderr
    found = LAST_LINE.fullmatch(run.stdout.splitlines()[-1])
    assert found, run.stdout
    return found.groups()


def test_quickstart() -> None:
    accuracy, steps, memory, adjoint, stored, ratio, error = last_line()
    assert float(accuracy) >= 96.0
    assert 1 < int(steps) <= 16
    assert adjoint == "reversible"
    assert 1 < 2 * float(memory) < float(stored)
    assert float(ratio) > 2
    assert float(error) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_quickstart_with_other_seeds(seed: str) -> None:
    accuracy, *_, error = last_line("--seed", seed)
    assert float(accuracy) >= 96.0
    assert float(error) == 0


@pytest.mark.parametrize("adjoint", ["hooks", "checkpoint"])
def test_quickstart_with_another_adjoint(adjoint: str) -> None:
    accuracy, steps, _, named, _, ratio, error = last_line(
        "--adjoint", adjoint, "--epochs", "1", "--steps", "4"
    )
    assert (named, steps) == (adjoint, "4")
    assert float(accuracy) > 80
    assert float(ratio) > 1
    assert error == {"hooks": "0.0", "checkpoint": "None"}[adjoint]


def test_quickstart_past_the_precision_of_a_float_state() -> None:
    run = quickstart("--state", "float32", "--epochs", "1")
    assert run.returncode != 0
    assert "ReconstructionError" in run.stderr
    assert "use state='exact'" in run.stderr
