"""``findings/``: a row in its README for each program, and what all programs have in common.

The programs themselves run by hand: they install other projects and test those.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests import ROOT

FOLDER = ROOT / "findings"
PROGRAMS = sorted(FOLDER.glob("*.sh"))
ROW = re.compile(r"^\| \[(?P<name>\w+)\]\((?P<link>\S+)\) \|.*\| (?P<versions>.+) \| .+ \|$", re.M)
RELEASE = re.compile(r"\b(?!and\b)([a-z][\w-]*) (\d+(?:\.\d+)+)\b")
PINNED = re.compile(r"([\w-]+)==([\w.]+)")

each = pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)


def rows() -> list[re.Match[str]]:
    return list(ROW.finditer((FOLDER / "README.md").read_text(encoding="utf-8")))


def header(program: Path) -> str:
    """The comment at its top, as one line."""
    lines = program.read_text(encoding="utf-8").splitlines()[1:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end])


def test_every_program_has_a_row() -> None:
    names = [row["name"] for row in rows()]
    assert sorted(names) == [program.stem for program in PROGRAMS]
    assert [row["link"] for row in rows()] == [f"{name}.sh" for name in names]


@each
def test_row_has_the_versions_of_the_program(program: Path) -> None:
    (row,) = (row for row in rows() if row["name"] == program.stem)
    seen = re.search(r"Seen \(([^)]*)\)", header(program))
    assert seen is not None
    of_row = set(RELEASE.findall(row["versions"]))
    assert of_row
    assert of_row <= set(RELEASE.findall(seen[1]))


@each
def test_header(program: Path) -> None:
    text = header(program)
    marks = ["Guess:", "Seen (", "What it means here:"]
    places = [text.find(mark) for mark in marks]
    assert places == sorted(places)
    assert places[0] > 0


@each
def test_stops_at_errors_and_can_be_run(program: Path) -> None:
    lines = program.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert os.access(program, os.X_OK)


@each
def test_pins_what_it_installs(program: Path) -> None:
    """With the versions that its header names: where it names several, the first."""
    text = program.read_text(encoding="utf-8").replace("\\\n", " ")
    installs = re.findall(r"/pip\"? install (.*)$", text, re.M)
    words = [word.strip('"') for line in installs for word in line.split() if word[0] != "-"]
    assert words
    for name, releases in re.findall(r"^for (\w+) in ([\d. ]+); do$", text, re.M):
        words = [word.replace(f"${name}", releases.split()[0]) for word in words]
    pinned = [PINNED.fullmatch(word) for word in words]
    assert all(pinned), words
    versions = {(found[1], found[2]) for found in pinned if found}
    seen = re.search(r"Seen \(([^)]*)\)", header(program))
    assert seen is not None
    assert set(RELEASE.findall(seen[1])) <= versions
