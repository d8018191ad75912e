"""`make newest` distinguishes new warnings of another torch from new failures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import newest

TESTS = """
import warnings

def test_fine(): pass

def test_warned(): warnings.warn("of another kind", FutureWarning)

def test_warned_too(): warnings.warn("of another kind", FutureWarning)

def test_wrong(): assert 1 == 2, "of another value"

def test_wrong_behind_a_warning():
    warnings.warn("of another kind", FutureWarning)
    raise ValueError("of another bit")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of tests as .ci/newest.sh makes them."""
    folder = tmp_path_factory.mktemp("newest")
    (folder / "test_some.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    again = ["--last-failed", "-W", "default"]
    for name, more in {"first": [], "beyond": again}.items():
        command = [sys.executable, "-m", "pytest", f"--junitxml={name}.xml", *more]
        subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return folder


def test_warnings_and_failures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert newest.main(folder) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("python ") and ", torch " in said[0]
    assert said[1:] == [
        "5 tests: 1 new warnings, 2 new failures",
        "warning in 2 tests: FutureWarning: of another kind",
        "  test_some.py::test_warned",
        "failure: test_some.py::test_wrong",
        "  AssertionError: of another value",
        "  assert 1 == 2",
        "failure: test_some.py::test_wrong_behind_a_warning",
        "  ValueError: of another bit",
    ]


def test_nothing_new() -> None:
    assert newest.report({"a": None, "b": None}, {}) == ["2 tests: 0 new warnings, 0 new failures"]


def test_a_warning_counts_where_nothing_ran_again() -> None:
    said = newest.report({"a": "torch.SomeWarning: x"}, {})
    assert said[1] == "warning in 1 tests: torch.SomeWarning: x"
