"""Puzzles from CSV files with the columns question and answer, like those of Sudoku-Extreme."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..config import SudokuData
from ..errors import RunError
from ..order import seed_of
from .checks import check
from .data import Sudoku

COLUMNS = ("question", "answer")
BLANKS = ".0"


def read_folder(data: SudokuData, folder: Path) -> Sudoku:
    """Puzzles from train.csv, and held-out ones from test.csv, chosen by the seed.

    Puzzles to train on whose solution is also one of a held-out puzzle are left out.

    Raises:
        RunError: a file that cannot be read, a row that is no puzzle of this size with its one
            solution, or fewer than asked for.
    """
    held_out = _chosen(folder / "test.csv", data.size, data.held_out, data.puzzle_seed, set())
    avoid = {bytes(row) for row in held_out[1].tolist()}
    training = _chosen(folder / "train.csv", data.size, data.train, data.puzzle_seed, avoid)
    return Sudoku(training, held_out, data.size)


def _chosen(
    path: Path, size: int, count: int, seed: int, avoid: set[bytes]
) -> tuple[Tensor, Tensor]:
    """`count` puzzles of a file with their solutions, none of which is in `avoid`."""
    total = sum(1 for _ in _rows(path))
    generator = torch.Generator().manual_seed(seed_of(seed, "sudoku", path.name))
    # More than wanted, because solutions in `avoid` are skipped; all, if those are many.
    taken = torch.randperm(total, generator=generator).tolist()
    place_of = {row: place for place, row in enumerate(taken[: 2 * count + len(avoid)])}
    found: dict[int, tuple[str, Tensor]] = {}
    for row, (line, *cells) in enumerate(_rows(path)):
        if row in place_of:
            name = f"{path}, line {line}"
            pair = [
                _digits(text, size, f"{name}, {column}")
                for text, column in zip(cells, COLUMNS, strict=True)
            ]
            if bytes(pair[1]) not in avoid:
                found[place_of[row]] = (name, torch.tensor(pair, dtype=torch.uint8))
    order = sorted(found)[:count]
    if len(order) < count:
        raise RunError(
            f"{path}: expected {count} puzzles, found {len(order)}"
            + (" whose solutions are not held out" if avoid else "")
            + "; ask for fewer"
        )
    pairs = torch.stack([found[place][1] for place in order], 1)
    puzzles, solutions = pairs[0].contiguous(), pairs[1].contiguous()
    check(puzzles, solutions, [found[place][0] for place in order])
    return puzzles, solutions


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """The line, the question and the answer of every row."""
    try:
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
                raise RunError(
                    f"{path}: expected the columns question and answer, found no {missing[0]} "
                    f"among {', '.join(rows.fieldnames or ()) or 'none'}"
                )
            for row in rows:
                yield rows.line_num, row["question"] or "", row["answer"] or ""
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error


def _digits(text: str, size: int, name: str) -> list[int]:
    if len(text) != size**2:
        raise RunError(f"{name}: expected {size**2} characters, got {len(text)}")
    digits = "123456789"[:size]
    for letter in text:
        if letter not in digits + BLANKS:
            raise RunError(f"{name}: expected digits up to {size} and . for blank, got {letter!r}")
    return [0 if letter in BLANKS else int(letter) for letter in text]
