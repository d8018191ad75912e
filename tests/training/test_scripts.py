"""The scripts as a reader runs them: they reach what docs/training.md says, and they resume."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import ROOT
from training import logs

EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.slow


def script(name: str, *options: str) -> str:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--device", "cpu", *options],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_an_image_run_and_its_resumption(tmp_path: Path) -> None:
    """Two updates and two more: as four at once."""
    short = ["--batch", "16", "--log-every", "1", "--warmup", "0", "--schedule", "constant"]
    script("train_image.py", *short, "--out", str(tmp_path / "a"), "--updates", "2")
    again = ["--resume", "--updates", "4"]
    last = script("train_image.py", *again, "--out", str(tmp_path / "a")).splitlines()[-1]
    assert (
        last
        == script(
            "train_image.py", *short, "--out", str(tmp_path / "b"), "--updates", "4"
        ).splitlines()[-1]
    )
    assert re.fullmatch(r"held-out accuracy: [0-9.]+%", last)
    parts = [logs.read(tmp_path / name / "log.jsonl") for name in ("a", "b")]
    losses = [[r["loss"] for r in part if r["kind"] == "training"] for part in parts]
    assert len(losses[0]) == 4 and losses[0] == losses[1]


def test_digits(tmp_path: Path) -> None:
    (accuracy,) = re.findall(
        r"held-out accuracy: ([0-9.]+)%", script("train_image.py", "--out", str(tmp_path))
    )
    assert float(accuracy) >= 97


def test_the_language_model_beats_the_trigram_model(tmp_path: Path) -> None:
    out = script("train_lm.py", "--preset", "tiny", "--out", str(tmp_path))
    found = re.search(r"bits per byte: ([0-9.]+), interpolated trigram model ([0-9.]+)$", out)
    assert found, out
    model, trigram = map(float, found.groups())
    assert model < 2.3 < 2.5 < trigram


def test_sudoku(tmp_path: Path) -> None:
    """Of 128 puzzles, none of which is one to train on under another name."""
    out = script("train_reasoning.py", "--out", str(tmp_path))
    (solved,) = re.findall(r"held-out puzzles solved: ([0-9.]+)%", out)
    assert float(solved) >= 90


def test_a_run_that_is_killed_says_how_to_go_on(tmp_path: Path) -> None:
    """And goes on so: by the line that it printed."""
    folder = tmp_path / "run"
    begin = [sys.executable, str(EXAMPLES / "train_reasoning.py")]
    short = ["--device", "cpu", "--updates", "30", "--log-every", "1", "--evaluate-every", "30"]
    with subprocess.Popen(
        [*begin, *short, "--out", str(folder)], stderr=subprocess.PIPE, text=True
    ) as process:
        while len(logs.read(folder / "log.jsonl")) < 3 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM
    said = re.fullmatch(
        r"train_reasoning: interrupted after update (\d+); checkpoint written to .*; continue with "
        r"(.*)\n",
        errors,
    )
    assert said, errors
    update, options = int(said[1]), said[2].split()
    assert 3 <= update < 30
    out = script("train_reasoning.py", *options)
    assert "held-out puzzles solved" in out
    done = [r["update"] for r in logs.read(folder / "log.jsonl") if r["kind"] == "training"]
    assert done == list(range(1, 31))
