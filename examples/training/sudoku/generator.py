"""Sudoku puzzles from a seed: full grids without the clues that a unique solution does not need."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..config import SudokuData
from ..errors import RunError
from ..order import seed_of
from .board import Board, board_of
from .data import Sudoku
from .solver import masks, one_thread, search
from .symmetry import fingerprints, orbits, transformed

CLUES = {4: 6, 6: 12, 9: 0}
"""Default number of clues. The small boards have few puzzles with the fewest clues (36 of 4x4
cells, up to symmetry); for 9x9, as few as leave one solution."""

HELD_OUT = 4
"""One in HELD_OUT solution grids is held out, depending only on its digits."""

BATCH = 4096
"""Grids that are generated at once."""

PATIENCE = 8
"""The search ends after this many batches without a new puzzle, each twice as long."""


@one_thread()
def generated(data: SudokuData) -> Sudoku:
    """The puzzles of a configuration, the same on every machine.

    What is held out does not depend on how many are trained on.

    Raises:
        RunError: there are not enough.
    """
    board = board_of(data.size)
    clues = CLUES[data.size] if data.clues is None else data.clues
    held_out = _puzzles("held_out", data.held_out, clues, board, data.puzzle_seed, None)
    avoid = orbits(held_out[0], board)
    training = _puzzles("train", data.train, clues, board, data.puzzle_seed, avoid)
    return Sudoku(training, held_out, data.size)


def _puzzles(
    name: str, count: int, clues: int, board: Board, seed: int, avoid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Puzzles and solutions of one part of the data.

    Args:
        name: of the part, for its seed and for errors.
        count: how many.
        clues: of each, at least.
        board: the rules.
        seed: of all parts.
        avoid: orbits that are none of this part's; None: this is the part that is held out, no two
            of whose puzzles have one orbit.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "sudoku", name))
    known: set[object] = set()
    kept: list[Tensor] = []
    idle = 0
    while len(known) < count and idle < PATIENCE:
        wanted = (count - len(known) + 16) << idle
        full = grids(min(HELD_OUT * wanted, BATCH), board, generator)
        full = full[(fingerprints(full) % HELD_OUT == 0) == (avoid is None)][:wanted]
        puzzles = dug(full, clues, board, generator)
        orbit = orbits(puzzles, board)
        if avoid is None:
            new = _new(orbit.tolist(), known)
        else:
            allowed = ~torch.isin(orbit, avoid)
            full, puzzles = full[allowed], puzzles[allowed]
            new = _new(map(bytes, puzzles.tolist()), known)
        kept.append(torch.stack([puzzles, full])[:, new])
        idle = 0 if new else idle + 1
    if len(known) < count:
        raise RunError(
            f"{name}: expected {count} puzzles of {board.size}x{board.size} cells with {clues} "
            f"clues, found {len(known)} that differ; choose fewer puzzles, or more clues"
        )
    pair = torch.cat(kept, 1)[:, :count]
    return pair[0].contiguous(), pair[1].contiguous()


def _new(keys: Iterable[object], known: set[object]) -> list[int]:
    """The positions of new keys, which are added to the known ones."""
    found = []
    for place, key in enumerate(keys):
        if key not in known:
            known.add(key)
            found.append(place)
    return found


def grids(count: int, board: Board, generator: torch.Generator) -> Tensor:
    """Random full grids, uint8 (count, cells)."""
    blank = torch.full((board.cells, count), board.all_digits, dtype=torch.int16)
    blank[: board.size] = (1 << torch.arange(board.size, dtype=torch.int16))[:, None]
    _, found = search(blank, board, generator=generator)
    draws = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    return transformed(found, draws, board)


def dug(solutions: Tensor, clues: int, board: Board, generator: torch.Generator) -> Tensor:
    """Puzzles whose only solutions are these, uint8 (n, cells).

    Cells are blanked in a random order, each if the solution stays the only one, until `clues` are
    left or no cell can be blanked.
    """
    count = len(solutions)
    boards, answers = masks(solutions, board), masks(solutions, board)
    order = torch.rand(count, board.cells, generator=generator).argsort(1)
    left = torch.full((count,), board.cells)
    for cell in order.T:
        which = (left > clues).nonzero()[:, 0]
        # Another solution has another digit in this cell.
        other = boards[:, which]
        other[cell[which], torch.arange(len(which))] = ~answers[cell[which], which] & (
            board.all_digits
        )
        found, _ = search(other, board)
        which = which[found == 0]
        boards[cell[which], which] = board.all_digits
        left[which] -= 1
    return torch.where((boards == answers).T, solutions, 0)
