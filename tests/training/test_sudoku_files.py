"""Sudoku puzzles in files: those that are kept, and the published ones."""

from __future__ import annotations

import copy
import csv
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training.config import SudokuData
from training.errors import RunError
from training.sudoku import Sudoku, data, generated, load_sudoku


def made(**options: Any) -> Sudoku:
    return generated(SudokuData(**options))


# ---- what is kept ----------------------------------------------------------------------------


def test_made_puzzles_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SudokuData(train=20, held_out=10)
    first = load_sudoku(config, tmp_path)
    monkeypatch.setattr("training.sudoku.generated", lambda _: pytest.fail("made again"))
    again = load_sudoku(config, tmp_path)
    for a, b in zip(
        [*first.training, *first.held_out], [*again.training, *again.held_out], strict=True
    ):
        assert torch.equal(a, b)
    augmentation = SudokuData(train=20, held_out=10, augment=False)
    assert data.kept(augmentation, tmp_path) is not None  # it changes no puzzle
    for other in ({"train": 21}, {"held_out": 11}, {"puzzle_seed": 1}, {"clues": 7}, {"size": 6}):
        options: dict[str, Any] = {"train": 20, "held_out": 10, **other}
        assert data.kept(SudokuData(**options), tmp_path) is None


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    config = SudokuData(train=20, held_out=10)
    first = load_sudoku(config, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        assert data.kept(config, tmp_path) is None
        assert torch.equal(load_sudoku(config, tmp_path).training[0], first.training[0])
        assert path.read_bytes() == whole


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(tensors: Any, path: str, facts: Any) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_sudoku(SudokuData(train=5, held_out=5), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot be written .* generates the puzzles again"):
        found = load_sudoku(SudokuData(train=5, held_out=5), tmp_path / "file")
    assert len(found.training[0]) == 5


def test_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_sudoku(SudokuData(train=5, held_out=5))
    (path,) = (tmp_path / "revdeq-kernels").iterdir()
    assert path.name.startswith("sudoku-4x4-")


# ---- files -----------------------------------------------------------------------------------


def write(path: Path, pairs: tuple[Tensor, Tensor], **columns: str) -> None:
    names = ["source", columns.get("question", "question"), "answer", "rating"]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(names)
        for pair in zip(*(part.tolist() for part in pairs), strict=True):
            texts = ["".join(str(digit or ".") for digit in part) for part in pair]
            rows.writerow(["puzzles1", *texts, "3"])


@cache
def _puzzles() -> Sudoku:
    return made(size=9, clues=45, train=20, held_out=6)


def same_puzzles() -> Sudoku:
    """A copy of the same puzzles for every test: they take seconds to make."""
    return copy.deepcopy(_puzzles())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sudoku = same_puzzles()
    write(tmp_path / "train.csv", sudoku.training)
    write(tmp_path / "test.csv", sudoku.held_out)
    return tmp_path


def files(folder: Path, **options: Any) -> SudokuData:
    values: dict[str, Any] = {"size": 9, "train": 15, "held_out": 6, **options}
    return SudokuData(**{"source": "csv", "folder": str(folder), **values})


def test_files(folder: Path) -> None:
    sudoku = same_puzzles()
    read = load_sudoku(files(folder))
    known = {
        bytes(puzzle): bytes(solution)
        for puzzle, solution in zip(*(part.tolist() for part in sudoku.training), strict=True)
    }
    rows = [part.tolist() for part in read.training]
    assert all(known[bytes(puzzle)] == bytes(row) for puzzle, row in zip(*rows, strict=True))
    assert len(read.training[0].unique(dim=0)) == 15 and read.size == 9
    assert sorted(read.held_out[0].tolist()) == sorted(sudoku.held_out[0].tolist())
    assert torch.equal(load_sudoku(files(folder)).training[0], read.training[0])
    assert not torch.equal(load_sudoku(files(folder, puzzle_seed=1)).training[0], read.training[0])


def test_held_out_solutions_are_not_trained_on(folder: Path) -> None:
    sudoku = same_puzzles()
    mixed = tuple(torch.cat(parts) for parts in zip(sudoku.training, sudoku.held_out, strict=True))
    write(folder / "train.csv", (mixed[0], mixed[1]))
    read = load_sudoku(files(folder, train=20))
    assert sorted(read.training[1].tolist()) == sorted(sudoku.training[1].tolist())
    with pytest.raises(
        RunError, match=r"expected 21 puzzles, found 20 whose solutions are not held"
    ):
        load_sudoku(files(folder, train=21))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("puzzles1,", "puzzles1,1"),
            r"train.csv, line 2, question: expected 81 characters, got 82",
        ),
        ((".", "x"), r"train.csv, line 2, question: expected digits up to 9 .* got 'x'"),
        (
            (",answer", ",solution"),
            "expected the columns question and answer, found no answer among",
        ),
    ],
)
def test_rows_that_are_no_puzzles(folder: Path, change: tuple[str, str], message: str) -> None:
    text = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(text.replace(*change, 1))
    with pytest.raises(RunError, match=message):
        load_sudoku(files(folder, train=20))


def test_a_row_with_another_solution(folder: Path) -> None:
    puzzles, solutions = same_puzzles().training
    write(folder / "train.csv", (puzzles, solutions[[0, 1, 3, *range(3, 20)]]))
    with pytest.raises(
        RunError, match=r"train.csv, line 4: the solution given is not the puzzle's"
    ):
        load_sudoku(files(folder, train=20))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"test.csv: cannot be read: .*No such file"):
        load_sudoku(files(tmp_path))
    (tmp_path / "test.csv").touch()
    with pytest.raises(RunError, match="expected the columns question and answer"):
        load_sudoku(files(tmp_path))


def test_sudoku_extreme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(*args: str, **options: str) -> str:
        asked.append((*args, options))
        return str(folder / args[1])

    hub = types.ModuleType("huggingface_hub")
    monkeypatch.setattr(hub, "hf_hub_download", download, raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    config = SudokuData(source="sudoku-extreme", size=9, train=10, held_out=6)
    assert load_sudoku(config).training[0].shape == (10, 81)
    repository = ("sapientinc/sudoku-extreme", {"repo_type": "dataset"})
    assert [(name, options) for name, _, options in asked] == [repository] * 2
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RunError, match="needs the package huggingface_hub"):
        load_sudoku(config)
