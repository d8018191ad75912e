"""Checks that reject invalid puzzles before training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import RunError
from .board import Board, board_for
from .solver import masks, search, twice


def check(
    puzzles: Tensor, solutions: Tensor | None = None, names: Sequence[str] | None = None
) -> Tensor:
    """Check that each puzzle has exactly one solution, and that it is the given one, if any.

    Args:
        puzzles: integers (n, size * size), of size 4, 6 or 9; 0 for blank, digits from 1.
        solutions: of the same shape; None: any.
        names: of the puzzles, for errors; None: their numbers.

    Returns:
        the solutions, uint8 (n, size * size).

    Raises:
        RunError: another shape or dtype; or, named by the first such puzzle: a digit out of range,
            a digit that stands twice in a row, column or box, no solution, more than one, another
            than the one given.
    """
    board = board_for(puzzles)
    if puzzles.is_floating_point() or puzzles.is_complex() or puzzles.dtype == torch.bool:
        raise RunError(f"puzzles: expected integers, got {puzzles.dtype}")
    if solutions is not None and solutions.shape != puzzles.shape:
        raise RunError(
            f"solutions: expected the shape of puzzles, {tuple(puzzles.shape)}, got "
            f"{tuple(solutions.shape)}"
        )
    names = names or [f"puzzles[{place}]" for place in range(len(puzzles))]
    outside = (puzzles < 0) | (puzzles > board.size)
    for place, cell in outside.nonzero()[:1].tolist():
        raise RunError(
            f"{names[place]}: expected 0 for blank and digits up to {board.size}, got "
            f"{puzzles[place, cell]} in row {cell // board.size + 1}, column "
            f"{cell % board.size + 1}"
        )
    clues = masks(puzzles, board)
    _check_conflicts(clues.masked_fill(puzzles.T == 0, 0), board, names)
    counts, found = search(clues, board, limit=2)
    for wrong, what in ((counts == 0, "no solution"), (counts > 1, "more than one solution")):
        for place in wrong.nonzero()[:1, 0].tolist():
            raise RunError(f"{names[place]}: expected one solution, got {what}")
    if solutions is not None:
        for place in (solutions != found).any(1).nonzero()[:1, 0].tolist():
            raise RunError(f"{names[place]}: the solution given is not the puzzle's")
    return found


def _check_conflicts(clues: Tensor, board: Board, names: Sequence[str]) -> None:
    """RunError if a digit occurs twice. `clues`: bit masks (cells, n), 0 for blank."""
    repeated = twice(clues, board)
    for place, unit in repeated.T.nonzero()[:1].tolist():
        digit = int(repeated[unit, place]).bit_length()
        kind = ("row", "column", "box")[unit // board.size]
        raise RunError(
            f"{names[place]}: digit {digit} occurs twice in {kind} {unit % board.size + 1}"
        )
