"""The Sudoku puzzles of the training scripts: solver, symmetries, generator, refusals."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.config import SudokuData
from training.errors import RunError
from training.sudoku import Sudoku, SudokuTask, augmented, check, generated
from training.sudoku.board import board_of
from training.sudoku.generator import dug, grids
from training.sudoku.solver import masks, search
from training.sudoku.symmetry import orbits, transformed

SIZES = (4, 6, 9)


@cache
def puzzles_of(size: int, count: int, seed: int, clues: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    solutions = grids(count, board_of(size), generator)
    return dug(solutions, clues, board_of(size), generator), solutions


def made(**options: Any) -> Sudoku:
    return generated(SudokuData(**options))


def rules(size: int) -> list[set[int]]:
    """The cells of every row, column and box, written down once more."""
    height = 3 if size == 9 else 2
    width = size // height
    cells = range(size**2)
    kinds = (
        lambda cell: cell // size,
        lambda cell: cell % size,
        lambda cell: (cell // size // height, cell % size // width),
    )
    return [{c for c in cells if kind(c) == kind(one)} for kind in kinds for one in cells]


def consistent(puzzle: list[int], size: int) -> bool:
    """Whether no digit stands twice."""
    filled = [[puzzle[cell] for cell in unit if puzzle[cell]] for unit in rules(size)]
    return all(len(set(digits)) == len(digits) for digits in filled)


def solutions_of(puzzle: list[int], size: int) -> list[list[int]]:
    """Solutions by backtracking, two at most."""
    units = rules(size)
    peers = [set().union(*(unit for unit in units if cell in unit)) for cell in range(size**2)]
    found: list[list[int]] = []

    def options(cell: int) -> set[int]:
        return set(range(1, size + 1)) - {puzzle[other] for other in peers[cell]}

    def extend() -> None:
        blank = [cell for cell in range(size**2) if not puzzle[cell]]
        if not blank:
            found.append(list(puzzle))
            return
        cell = min(blank, key=lambda cell: len(options(cell)))
        for digit in options(cell):
            puzzle[cell] = digit
            extend()
            puzzle[cell] = 0
            if len(found) == 2:
                return

    extend()
    return found


# ---- solver and generator --------------------------------------------------------------------


def test_all_grids_of_4x4_are_found() -> None:
    blank = masks(torch.zeros(1, 16, dtype=torch.uint8), board_of(4))
    assert search(blank, board_of(4), limit=1000)[0].item() == 288
    assert search(blank, board_of(4), limit=2)[0].item() == 2


@pytest.mark.parametrize(("size", "clues"), [(4, 0), (6, 0), (9, 28)])
def test_puzzles_have_their_solution_alone(size: int, clues: int) -> None:
    """By another solver."""
    puzzles, solutions = puzzles_of(size, 8, 1, clues)
    for puzzle, solution in zip(puzzles.tolist(), solutions.tolist(), strict=True):
        assert solutions_of(puzzle, size) == [solution]


@pytest.mark.parametrize("size", [4, 6])
def test_the_hardest_puzzles_have_no_clue_to_spare(size: int) -> None:
    puzzle = puzzles_of(size, 1, 1)[0][0].tolist()
    for cell in [cell for cell, digit in enumerate(puzzle) if digit]:
        assert len(solutions_of([*puzzle[:cell], 0, *puzzle[cell + 1 :]], size)) == 2


def test_a_number_of_clues() -> None:
    puzzles, _ = puzzles_of(6, 50, seed=0, clues=18)
    assert (puzzles > 0).sum(1).tolist() == [18] * 50


@pytest.mark.parametrize(("size", "clues"), [(4, 0), (6, 0), (9, 28)])
def test_the_solver_agrees_with_backtracking(size: int, clues: int) -> None:
    """On puzzles with no solution, one, and more: a cell is blanked, or its digit another."""
    puzzles, solutions = (part.clone() for part in puzzles_of(size, 12, 1, clues))
    for place in range(len(puzzles)):
        cell = place * 31 % size**2
        puzzles[place, cell] = (0, solutions[place, cell] % size + 1)[place % 2]
    counts, found = search(masks(puzzles, board_of(size)), board_of(size), limit=2)
    for puzzle, count, solution in zip(puzzles.tolist(), counts, found.tolist(), strict=True):
        assert count == (len(solutions_of(list(puzzle), size)) if consistent(puzzle, size) else 0)
        if count:
            assert all(clue in (0, digit) for clue, digit in zip(puzzle, solution, strict=True))
            assert consistent(solution, size) and 0 not in solution
    assert len(counts.unique()) > 1


def test_data_are_the_seeds() -> None:
    config = SudokuData(size=6, train=40, held_out=10, puzzle_seed=3)
    one, other = generated(config), generated(config)
    for a, b in zip(
        [*one.training, *one.held_out], [*other.training, *other.held_out], strict=True
    ):
        assert torch.equal(a, b) and a.dtype == torch.uint8
    more = made(size=6, train=50, held_out=10, puzzle_seed=3)
    assert torch.equal(more.held_out[0], one.held_out[0])
    assert not torch.equal(
        made(size=6, train=40, held_out=10, puzzle_seed=4).training[0], one.training[0]
    )


@pytest.mark.parametrize("size", SIZES)
def test_held_out_puzzles_are_others(size: int) -> None:
    """Other grids, and no symmetry makes a puzzle to train on a held-out one."""
    train, held_out, clues = (40, 10, 40) if size == 9 else (500, 100, None)
    sudoku = made(size=size, clues=clues, train=train, held_out=held_out)
    (puzzles, solutions), (others, other_solutions) = sudoku.training, sudoku.held_out
    assert len(puzzles) == len(puzzles.unique(dim=0)) == train
    grids_of = [{bytes(row) for row in part.tolist()} for part in (solutions, other_solutions)]
    assert not grids_of[0] & grids_of[1]
    board = board_of(size)
    orbits_of = [set(orbits(part, board).tolist()) for part in (puzzles, others)]
    assert not orbits_of[0] & orbits_of[1] and len(orbits_of[1]) == len(others) == held_out
    assert torch.equal(check(puzzles, solutions), solutions)
    assert torch.equal(check(others, other_solutions), other_solutions)


def test_more_puzzles_than_there_are() -> None:
    """But for symmetry, 36 puzzles of 4x4 cells have no clue to spare (a known number)."""
    with pytest.raises(RunError, match=r"held_out: expected 100 .* 0 clues, found 36 that differ"):
        made(size=4, clues=0, held_out=100)


# ---- symmetries ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SIZES), st.integers(0, 3), st.integers(0, 2**62))
def test_an_augmented_puzzle_has_its_augmented_solution(size: int, seed: int, draw: int) -> None:
    puzzles, solutions = puzzles_of(size, 4, seed, 30 if size == 9 else 0)
    moved, moved_solutions = augmented(puzzles, solutions, torch.Generator().manual_seed(draw))
    assert torch.equal(check(moved, moved_solutions), moved_solutions)
    assert torch.equal((moved > 0).sum(1), (puzzles > 0).sum(1))
    board = board_of(size)
    assert torch.equal(orbits(moved, board), orbits(puzzles, board))


@pytest.mark.parametrize(("size", "symmetries"), [(4, 2 * 8**2 * 24), (6, 48 * 72 * 720)])
def test_every_symmetry_is_drawn(size: int, symmetries: int) -> None:
    """A grid of cell numbers and one of digits: of 4x4 all images, of 6x6 as many as chance has."""
    draws = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, solution = puzzles_of(size, 1, seed=0)
    board = board_of(size)
    ones = torch.eye(size**2, dtype=torch.uint8)[:, None].expand(-1, len(draws), -1)
    places = (transformed(ones.contiguous(), draws, board) > 0).int().argmax(-1)
    images = torch.cat([places.T, transformed(solution.expand(len(draws), -1), draws, board)], 1)
    found = len(images.unique(dim=0))
    expected = symmetries * (1 - (1 - 1 / symmetries) ** len(draws))
    assert abs(found - expected) < 5 * max(expected * len(draws) / symmetries, 1) ** 0.5


def test_draws_decide() -> None:
    puzzles, _ = puzzles_of(9, 3, seed=0)
    draws = torch.rand(3, 3, dtype=torch.float64)
    whole = transformed(puzzles, draws, board_of(9))
    for place in range(3):
        alone = transformed(puzzles[place : place + 1], draws[place : place + 1], board_of(9))
        assert torch.equal(whole[place], alone[0])


def test_orbits_tell_puzzles_apart() -> None:
    puzzles, _ = puzzles_of(6, 300, seed=0, clues=12)
    assert len(orbits(puzzles, board_of(6)).unique()) == 300
    mirrored = puzzles.view(-1, 6, 6).mT.flatten(1)  # no symmetry of 2x3 boxes
    assert not (orbits(mirrored, board_of(6)) == orbits(puzzles, board_of(6))).any()


# ---- what is no puzzle -----------------------------------------------------------------------


def spoiled(cells: dict[int, int]) -> Tensor:
    puzzles = puzzles_of(4, 3, 2, 8)[0].clone()
    for cell, digit in cells.items():
        puzzles[1, cell] = digit
    return puzzles


@pytest.mark.parametrize(
    ("puzzles", "message"),
    [
        (torch.zeros(3, 15, dtype=torch.uint8), r"puzzles: expected a shape of \(n, 16, 36, 81\)"),
        (torch.zeros(16, dtype=torch.uint8), r"puzzles: expected a shape"),
        (torch.zeros(3, 16), "puzzles: expected integers, got torch.float32"),
        (spoiled({6: 5}), r"puzzles\[1\]: expected 0 for blank and digits up to 4, got 5 in row 2"),
        (spoiled({6: -1 % 256}), r"puzzles\[1\]: .* got 255 in row 2, column 3"),
        (spoiled(dict.fromkeys(range(16), 0)), r"puzzles\[1\]: .* got more than one solution"),
        (
            spoiled(dict.fromkeys(range(16), 0) | {0: 3, 3: 3}),
            r"\[1\]: digit 3 occurs twice in row 1",
        ),
        (spoiled(dict.fromkeys(range(16), 0) | {0: 3, 8: 3}), r"digit 3 occurs twice in column 1"),
        (spoiled(dict.fromkeys(range(16), 0) | {2: 1, 7: 1}), r"digit 1 occurs twice in box 2"),
        (
            spoiled(dict.fromkeys(range(16), 0) | {0: 1, 1: 2, 6: 3, 10: 4}),
            r"puzzles\[1\]: expected one solution, got no solution",
        ),
    ],
)
def test_what_is_no_puzzle_is_named(puzzles: Tensor, message: str) -> None:
    with pytest.raises(RunError, match=message):
        check(puzzles)


def test_a_wrong_solution_is_named() -> None:
    puzzles, solutions = puzzles_of(4, 3, seed=0)
    assert torch.equal(check(puzzles.long()), solutions)
    with pytest.raises(RunError, match=r"second: the solution given is not the puzzle's"):
        check(puzzles, solutions[[0, 2, 2]], ["first", "second", "third"])
    with pytest.raises(RunError, match="solutions: expected the shape of puzzles"):
        check(puzzles, solutions[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, "train: expected at least 1"),
        ({"clues": 16}, "clues: expected 0 to 15 of 16 cells, got 16"),
        ({"source": "sudoku-extreme"}, "size: expected 9 with source sudoku-extreme, got 4"),
        ({"source": "csv"}, "folder: expected one with source csv"),
        ({"folder": "x"}, "folder: expected one with source csv, and None with any other"),
    ],
)
def test_configurations_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        SudokuData(**options)


# ---- the task --------------------------------------------------------------------------------


def test_the_task() -> None:
    sudoku = made(train=20, held_out=10)
    plain, varied = (SudokuTask(sudoku, augment=augment) for augment in (False, True))
    indices, draws = torch.tensor([3, 5]), torch.rand(2, 3, dtype=torch.float64)
    puzzles, solutions = plain.training(indices, draws)
    assert torch.equal(puzzles, sudoku.training[0][indices].long())
    assert torch.equal(solutions, sudoku.training[1][indices].long())
    moved, moved_solutions = varied.training(indices, draws)
    assert torch.equal(check(moved, moved_solutions), moved_solutions.to(torch.uint8))
    assert not torch.equal(moved, puzzles) and moved.dtype == torch.int64
    held_out, _ = varied.evaluation(torch.tensor([9]))
    assert torch.equal(held_out[0], sudoku.held_out[0][9].long())
    assert (plain.size, plain.held_out, plain.identity) == (20, 10, varied.identity)
    other = made(train=20, held_out=10, puzzle_seed=1)
    assert SudokuTask(other, augment=False).identity != plain.identity
    assert plain.figures(1.0, 0.5) == {"cell_accuracy": 0.5}
