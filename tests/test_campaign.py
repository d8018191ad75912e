"""bench/campaign.sh: its stages, what it refuses, what it skips and what it keeps."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def campaign(
    *arguments: str, root: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    command_line = ["bash", str(root / "bench" / "campaign.sh"), *arguments]
    settings = {"PATH": os.environ["PATH"], "PYTHON": "the-python"} | environment
    return subprocess.run(command_line, capture_output=True, text=True, env=settings, check=False)


SOLVER = [f"-m bench.solver --device cuda --parts {p}" for p in ("cost", "options", "error")]


@pytest.mark.parametrize(
    ("stage", "steps"),
    [
        ("build", ["pip install --no-build-isolation --no-deps -e .", "-m revdeq_kernels.info"]),
        ("test", ["-m pytest -q -m gpu tests", "-m pytest -q -m not\\ gpu"]),
        ("sanitize", ["compute-sanitizer --tool memcheck"]),
        ("bench", ["-m bench --device cuda", "bench/results/"]),
        ("solver", ["-m bench.cell", *SOLVER, "solver.*"]),
    ],
)
def test_campaign_names_the_steps_of_a_stage(stage: str, steps: list[str]) -> None:
    done = campaign("--stage", stage, "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(steps)
    for line, step in zip(lines, steps, strict=True):
        assert step in line
    assert "the-python" in done.stdout


@pytest.mark.parametrize("arguments", [("--stage", "deploy"), ("--stage",), (), ("--fast",)])
def test_campaign_refuses_what_it_does_not_know(arguments: tuple[str, ...]) -> None:
    done = campaign(*arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr


@pytest.fixture
def campaign_tree(tmp_path: Path) -> Path:
    """A tree with nothing but the script, and a python that fails where FAIL is in its command."""
    (tmp_path / "bench").mkdir()
    shutil.copy(ROOT / "bench" / "campaign.sh", tmp_path / "bench")
    (tmp_path / "setup.py").write_text("first\n", encoding="utf-8")
    python = tmp_path / "python"
    script = '#!/bin/sh\ncase "$*" in *"$FAIL"*) exit 3;; esac\necho "A GPU"\n'
    python.write_text(script, encoding="utf-8")
    python.chmod(0o755)
    return tmp_path


def test_campaign_goes_on_after_a_failure_and_skips_what_is_done(campaign_tree: Path) -> None:
    def run(stage: str, fail: str) -> subprocess.CompletedProcess[str]:
        paths = {"PYTHON": str(campaign_tree / "python"), "OUT": str(campaign_tree / "handed")}
        return campaign("--stage", stage, root=campaign_tree, FAIL=fail, **paths)

    assert "build first" in run("test", "nothing").stderr
    first = run("build", "pip")
    assert first.returncode == 1
    assert "install: failed with exit status 3" in first.stdout
    assert "info: ok" in first.stdout
    second = run("build", "nothing")
    assert second.returncode == 0, second.stderr
    assert "install: ok" in second.stdout
    assert "info: done before on these sources" in second.stdout
    handed = sorted(path.name for path in (campaign_tree / "handed").iterdir())
    assert handed == ["build-info.log", "build-install.log"]
    assert run("test", "nothing").returncode == 0

    (campaign_tree / "setup.py").write_text("changed\n", encoding="utf-8")
    assert "build first" in run("test", "nothing").stderr


def test_campaign_keeps_figures_of_a_run_that_failed(campaign_tree: Path) -> None:
    python = str(campaign_tree / "python")
    measured = campaign_tree / "bench" / "out" / "campaign" / "measured"
    measured.mkdir(parents=True)
    (measured / "results.jsonl").write_text("{}\n", encoding="utf-8")
    campaign("--stage", "build", root=campaign_tree, FAIL="nothing", PYTHON=python)
    done = campaign("--stage", "bench", root=campaign_tree, FAIL="-m bench", PYTHON=python)
    assert done.returncode == 1
    assert (campaign_tree / "bench" / "results" / "A-GPU" / "results.jsonl").exists()
    (measured / "solver.jsonl").write_text("{}\n", encoding="utf-8")
    campaign("--stage", "solver", root=campaign_tree, FAIL="-m bench", PYTHON=python)
    assert (campaign_tree / "bench" / "results" / "A-GPU" / "solver.jsonl").exists()
