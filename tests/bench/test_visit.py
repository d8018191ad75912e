"""A visit to a GPU: the table of its steps, and the commands that they run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import arguments, suite
from bench.visit import build, report, runner, steps
from bench.visit.runner import FAILED, SKIPPED
from bench.visit.steps import CALLS, Place, Step
from tests import ROOT
from tests.ops.arguments import OVERLOADS

LIMITS = {"right": 430, "fast": 300}
EVERY = [(name, step) for name, call in CALLS.items() for step in call.steps]
every_step = pytest.mark.parametrize(
    ("call", "step"), EVERY, ids=[f"{name}-{step.name}" for name, step in EVERY]
)
TESTED = [step for _, step in EVERY if "pytest" in step.command(Place(True, ROOT))]
"""The steps that run tests."""

# ---- the table -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_the_limits_of_a_call_are_within_its_seconds(name: str) -> None:
    call = CALLS[name]
    assert call.seconds == LIMITS[name]
    assert sum(step.limit for step in call.steps) + runner.HAND_OVER <= call.seconds
    assert all(step.expected <= step.limit for step in call.steps)
    assert len({step.name for step in call.steps}) == len(call.steps)


def test_what_is_worth_most_comes_first() -> None:
    assert [step.name for step in CALLS["right"].steps] == [
        "build", "info", "smoke", "tests", "large", "memcheck",
    ]  # fmt: skip
    assert [step.name for step in CALLS["fast"].steps] == [
        "build", "ceilings", "ops", "cell", "cost", "nsight", "racecheck",
    ]  # fmt: skip


def test_a_call_hands_over_three_files() -> None:
    files = [file for name in CALLS for file in report.files_of(name)]
    assert len(set(files)) == len(files) == 6  # of the eight that come back from a machine
    assert all(re.fullmatch(r"[\w.-]+", file) for file in files)


@every_step
def test_a_command_is_this_python_s_and_installs_nothing(
    call: str, step: Step, tmp_path: Path
) -> None:
    for on_gpu in (True, False):
        words = step.command(Place(on_gpu, tmp_path, "the-python"))
        assert "the-python" in words
        assert "pip" not in words and "install" not in words
    if "-m bench " in " ".join(step.command(Place(True, tmp_path))):
        assert_the_benchmark_is_known(step, tmp_path)


def assert_the_benchmark_is_known(step: Step, work: Path) -> None:
    """As `python -m bench` reads its options, but for the GPU."""
    for on_gpu in (True, False):
        words = step.command(Place(on_gpu, work))
        words = ["cpu" if word == "cuda" else word for word in words[words.index("bench") + 1 :]]
        chosen = arguments.parse(words)
        assert suite.select(chosen.only)
        assert chosen.append and chosen.out == work / "measured"


def test_every_file_with_tests_for_a_gpu_is_named() -> None:
    marked = re.compile(r"^(pytestmark = on_gpus|.*marks=on_gpus|    pytest\.mark\.gpu,)", re.M)
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("tests/**/test_*.py")
        if path != Path(__file__) and marked.search(path.read_text(encoding="utf-8"))
    }
    assert found == set(steps.GPU_TESTS)


@pytest.mark.slow
@pytest.mark.parametrize("step", TESTED, ids=lambda step: step.name)
def test_the_tests_of_a_step_are_there(step: Step, tmp_path: Path) -> None:
    """Collected as on a GPU: none of the expressions selects nothing."""
    words = step.command(Place(True, tmp_path, sys.executable))
    words = [*words[words.index("-m") :], "--collect-only"]
    if "-n" in words:
        words[words.index("-n") + 1] = "0"
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=runner.environment(Place(False, tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = list(report.read_lines(tmp_path / f"{step.name}.jsonl"))
    assert len(lines) >= 3 and {line["record"] for line in lines} == {"collected"}
    if step.name in ("tests", "memcheck"):
        assert {line["backend"] for line in lines} >= {"cuda"}
        assert {line["op"] for line in lines} >= set(OVERLOADS)
    assert ("triton" in {line["backend"] for line in lines}) == (step.name == "tests")


def test_the_documents_have_the_table() -> None:
    text = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    for name, call in CALLS.items():
        for k, step in enumerate(call.steps):
            head = f"`{name}`, {call.seconds} s" if k == 0 else ""
            row = f"| {head} | `{step.name}` | {step.about} | {step.expected} | {step.limit} |"
            assert row in text


@pytest.mark.parametrize(
    ("capability", "arch"), [((9, 0), "9.0a"), ((8, 0), "8.0"), ((10, 0), "10.0")]
)
def test_a_build_is_for_the_card_alone(capability: tuple[int, int], arch: str) -> None:
    assert build.settings(capability)["TORCH_CUDA_ARCH_LIST"] == arch
    assert build.COMMAND[1:] == ["setup.py", "build_ext", "--inplace"]


# ---- compute-sanitizer -----------------------------------------------------------------------


def test_what_a_sanitizer_finds_is_told_from_a_test_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert steps.SANITIZER_CODE not in range(6)  # pytest's own
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/said"\nexit "$CODE"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (step,) = (s for s in CALLS["right"].steps if s.name == "memcheck")
    for code, why in ((99, "exit 99; compute-sanitizer found errors"), (1, "exit 1")):
        monkeypatch.setenv("CODE", str(code))
        result = runner.one(step, Place(True, tmp_path), 30.0)
        assert (result.outcome, result.why) == (FAILED, why)
    said = (tmp_path / "said").read_text()
    assert said.startswith("--tool memcheck --target-processes all --error-exitcode 99 ")
    assert " -m gpu " in said
    monkeypatch.setattr(steps, "program", lambda name: None)
    result = runner.one(step, Place(True, tmp_path), 30.0)
    assert (result.outcome, result.why) == (SKIPPED, "needs compute-sanitizer")


def test_without_xdist_the_tests_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (step,) = (s for s in CALLS["right"].steps if s.name == "tests")
    place = Place(True, tmp_path)
    assert "-n" in step.command(place) and step.notes() == []
    known = steps.is_installed
    monkeypatch.setattr(steps, "is_installed", lambda name: name != "xdist" and known(name))
    assert "-n" not in step.command(place) and "xdist" not in step.command(place)
    assert step.notes() == ["without xdist: one test after another, as far as the limit allows"]
