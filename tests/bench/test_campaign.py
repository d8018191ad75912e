"""bench/campaign.sh: its stages, what it refuses, what it skips and what it keeps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import arguments, suite
from tests import ROOT


def campaign(
    *arguments: str, root: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    command_line = ["bash", str(root / "bench" / "campaign.sh"), *arguments]
    settings = {"PATH": os.environ["PATH"], "PYTHON": "the-python"} | environment
    return subprocess.run(command_line, capture_output=True, text=True, env=settings, check=False)


IN_FULL = "-m bench --device cuda --full --out"


@pytest.mark.parametrize(
    ("stage", "steps"),
    [
        ("build", ["pip install --no-build-isolation --no-deps -e .", "-m revdeq_kernels.info"]),
        ("test", ["-m pytest -q -m gpu tests", "-m pytest -q -m not\\ gpu"]),
        ("sanitize", ["compute-sanitizer --tool memcheck"]),
        ("cost", ["--only cell", "mlp block", "language", "vision", "bench/results/"]),
        ("peers", ["--models block", "--models mlp", "bench/results/"]),
        ("largest", ["--models mlp", "--models block", "bench/results/"]),
        ("overhead", ["--only solve.overhead", "--only solve.options", "bench/results/"]),
        ("ops", ["--only ops", "bench/results/"]),
        ("profile", ["--only solve.profile", "--only nsight", "bench/results/"]),
        (
            "error",
            ["--only solve.error", "-m bench.show.html", "-m bench.show.figures", "bench/results/"],
        ),
    ],
)
def test_campaign_names_the_steps_of_a_stage(stage: str, steps: list[str]) -> None:
    done = campaign("--stage", stage, "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(steps)
    for line, step in zip(lines, steps, strict=True):
        assert step in line
        if "--only" in line:
            assert IN_FULL in line
            assert_the_benchmark_is_known(line)
    seconds = [int(found) for found in re.findall(r": timeout (\d+) ", done.stdout)]
    assert sum(seconds) <= 540
    assert "the-python" in done.stdout


def assert_the_benchmark_is_known(line: str) -> None:
    """As `python -m bench` reads its options, but for the GPU."""
    words = line.split("-m bench ")[1].replace("--device cuda", "--device cpu").split()
    assert suite.select(arguments.parse(words).only)


def test_every_stage_is_one_of_the_usage() -> None:
    text = (ROOT / "bench" / "campaign.sh").read_text(encoding="utf-8")
    functions = re.findall(r"^stage_(\w+)\(\)", text, re.MULTILINE)
    assert campaign("--help").stdout.split("stages: ")[1].split() == functions


@pytest.mark.parametrize("given", ["option", "variable"])
def test_the_carried_library_is_named_to_the_peers(tmp_path: Path, given: str) -> None:
    option = ("--jax", str(tmp_path)) if given == "option" else ()
    variable = {"JAX": str(tmp_path)} if given == "variable" else {}
    done = campaign("--stage", "peers", "--dry-run", *option, root=ROOT, **variable)
    assert done.stdout.count("--jax-python") == 2
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    done = campaign("--stage", "peers", "--dry-run", *option, root=ROOT, **variable)
    assert done.stdout.count(f"--jax-python {tmp_path}/bin/python") == 2
    assert "--jax-python" not in campaign("--stage", "peers", "--dry-run").stdout
    refused = campaign("--stage", "peers", "--jax", str(tmp_path / "none"))
    assert refused.returncode == 2 and "expected a folder" in refused.stderr


def test_a_folder_of_packages_becomes_an_interpreter(campaign_tree: Path) -> None:
    packages = campaign_tree / "a folder"
    packages.mkdir()
    python = campaign_tree / "python"
    campaign("--stage", "build", root=campaign_tree, FAIL="nothing", PYTHON=str(python))
    options = ("--stage", "peers", "--jax", str(packages))
    campaign(*options, root=campaign_tree, FAIL="nothing", PYTHON=str(python))
    python.write_text('#!/bin/sh\necho "$PYTHONPATH: $1"\n', encoding="utf-8")
    wrapper = campaign_tree / "bench" / "out" / "campaign" / "jax-python"
    done = subprocess.run([str(wrapper), "worker"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{packages}: worker\n"


@pytest.mark.parametrize("given", [("--stage", "deploy"), ("--stage",), (), ("--fast",)])
def test_campaign_refuses_what_it_does_not_know(given: tuple[str, ...]) -> None:
    done = campaign(*given)
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
    for name in ("solve.cost.jsonl", "solve.cost.png", "trace-mlp.json.gz"):
        (measured / name).write_text("{}\n", encoding="utf-8")
    campaign("--stage", "build", root=campaign_tree, FAIL="nothing", PYTHON=python)
    done = campaign("--stage", "cost", root=campaign_tree, FAIL="-m bench", PYTHON=python)
    assert done.returncode == 1
    kept = sorted(path.name for path in (campaign_tree / "bench" / "results" / "A-GPU").iterdir())
    assert kept == ["solve.cost.jsonl", "solve.cost.png"]
