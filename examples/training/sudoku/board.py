"""Boards of 4x4, 6x6 and 9x9 cells, and their units: rows, columns and boxes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..errors import RunError


@dataclass(frozen=True)
class Board:
    """The rules of a size.

    Attributes:
        size: rows, columns, and digits.
        box: rows and columns of a box.
        units: the cells of every row, column and box, int64 (3 * size, size).
        units_of: the row, the column and the box of every cell, as rows of `units`, (cells, 3).
    """

    size: int
    box: tuple[int, int]
    units: Tensor
    units_of: Tensor

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.size**2

    @property
    def all_digits(self) -> int:
        """The mask of a cell that may hold any digit."""
        return (1 << self.size) - 1


BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns of a box, for each size of board."""


@cache
def board_of(size: int) -> Board:
    """The board of a size.

    Raises:
        RunError: a size other than 4, 6 and 9.
    """
    if size not in BOXES:
        raise RunError(f"size: expected {', '.join(map(str, BOXES))}, got {size}")
    height, width = BOXES[size]
    row = torch.arange(size).repeat_interleave(size)
    column = torch.arange(size).repeat(size)
    box = row // height * height + column // width
    units_of = torch.stack([row, size + column, 2 * size + box], 1)
    units = torch.stack([(units_of == unit).any(1).nonzero()[:, 0] for unit in range(3 * size)])
    return Board(size, (height, width), units, units_of)


def board_for(puzzles: Tensor, name: str = "puzzles") -> Board:
    """The board of puzzles (n, cells).

    Raises:
        RunError: a wrong number of dimensions or of cells.
    """
    for size in BOXES:
        if puzzles.ndim == 2 and puzzles.shape[1] == size**2:
            return board_of(size)
    wanted = ", ".join(str(size**2) for size in BOXES)
    raise RunError(f"{name}: expected a shape of (n, {wanted}), got {tuple(puzzles.shape)}")
