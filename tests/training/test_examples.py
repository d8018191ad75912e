"""The examples run as a reader runs them, and reach what they say."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest
import torch

from tests import ROOT
from torch_revdeq import ReconstructionError

QUICKSTART = ROOT / "examples" / "quickstart.py"

LAST_LINE = re.compile(
    r"test accuracy ([\d.]+)%, (\d+) steps, "
    r"peak memory ([\d.]+) MiB (\w+) against ([\d.]+) MiB backprop \(([\d.]+)x\), "
    r"reconstruction error (.+)"
)


def facts(printed: str) -> tuple[str, ...]:
    """What the last line says."""
    found = LAST_LINE.fullmatch(printed.splitlines()[-1])
    assert found, printed
    return found.groups()


def last_line(*options: str) -> tuple[str, ...]:
    run = subprocess.run(
        [sys.executable, str(QUICKSTART), "--device", "cpu", *options],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return facts(run.stdout)


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
def test_quickstart_with_another_adjoint(adjoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    quickstart = importlib.import_module("quickstart")
    quickstart.main(quickstart.Options(adjoint=adjoint, epochs=1, steps=4, device="cpu"))
    accuracy, steps, _, named, _, ratio, error = facts(capsys.readouterr().out)
    assert (named, steps) == (adjoint, "4")
    assert float(accuracy) > 80
    assert float(ratio) > 1
    assert error == {"hooks": "0.0", "checkpoint": "None"}[adjoint]


def test_quickstart_past_the_precision_of_a_float_state() -> None:
    quickstart = importlib.import_module("quickstart")
    with pytest.raises(ReconstructionError, match="use state='exact'"):
        quickstart.main(quickstart.Options(state="float32", epochs=1, device="cpu"))


def test_the_readme_shows_such_a_line() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    (shown,) = [found for line in lines if (found := LAST_LINE.fullmatch(line))]
    assert float(shown[1]) >= 96.0
    assert (shown[4], shown[7]) == ("reversible", "0.0")


def memory_table() -> dict[tuple[int, str], float]:
    """Peak memory by steps and adjoint, in MiB, as docs/choosing.md states it."""
    text = (ROOT / "docs" / "choosing.md").read_text()
    table = text.split("<!-- memory:begin -->")[1].split("<!-- memory:end -->")[0]
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in table.split("\n") if row
    ]
    (_, *adjoints), _, *numbers = rows
    return {
        (int(steps), adjoint): float(mebibytes)
        for steps, *row in numbers
        for adjoint, mebibytes in zip(adjoints, row, strict=True)
    }


def test_the_table_of_memory() -> None:
    quickstart = importlib.import_module("quickstart")
    torch.manual_seed(0)
    batch = torch.rand(64, 1, 8, 8), torch.randint(10, (64,))
    for (steps, adjoint), mebibytes in memory_table().items():
        model = quickstart.Model(quickstart.Options(steps=steps, adjoint=adjoint))
        model.equilibrium.options["tol"] = None
        assert quickstart.peak_memory(model, *batch) / 2**20 == pytest.approx(mebibytes, rel=0.05)
