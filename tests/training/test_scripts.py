"""The scripts as a reader runs them: they reach what docs/training.md says, and they resume."""

from __future__ import annotations

import re
import subprocess
import sys
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
