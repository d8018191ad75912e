"""The symmetries of Sudoku: random ones, and invariants under all of them."""

from __future__ import annotations

import itertools
import math
from functools import cache

import torch
from torch import Tensor

from .board import Board, board_for

ROUNDS = 4
"""Rounds of ``orbits``. More rounds distinguish no more puzzles."""


def augmented(
    puzzles: Tensor, solutions: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Puzzles and solutions, uint8 (n, cells), each pair under a random symmetry.

    See ``transformed``. Given a generator in the same state, the result is the same.
    """
    board = board_for(puzzles)
    draws = torch.rand(len(puzzles), 3, generator=generator, dtype=torch.float64)
    pair = transformed(torch.stack([puzzles, solutions]), draws, board)
    return pair[0], pair[1]


def transformed(grid: Tensor, draws: Tensor, board: Board) -> Tensor:
    """Grids, each under a symmetry of Sudoku that the draws choose.

    Digits are named anew, bands and the rows inside of them change places, stacks and their columns
    too, and where boxes are square the grid may be transposed.

    Args:
        grid: uint8 (n, cells) or (parts, n, cells): the parts get the same symmetries. 0: blank.
        draws: float64 (n, 3), in [0, 1).
        board: the rules.
    """
    size, (height, width) = board.size, board.box
    names = _pick(_orders(size), draws[:, 0])
    names = torch.cat([torch.zeros_like(names[:, :1]), names + 1], 1)
    row_orders, column_orders = _line_orders(size, height), _line_orders(size, width)
    row_draw = draws[:, 1] * len(row_orders)
    rows, columns = _pick(row_orders, draws[:, 1]), _pick(column_orders, row_draw.frac())
    cells = rows[:, :, None] * size + columns[:, None, :]
    if height == width:
        transposed = draws[:, 2] < 0.5
        cells = torch.where(transposed[:, None, None], cells.mT, cells)
    moved = grid.gather(-1, cells.flatten(1).expand(grid.shape))
    return names.expand(*grid.shape[:-1], -1).gather(-1, moved.long()).to(torch.uint8)


def orbits(puzzles: Tensor, board: Board) -> Tensor:
    """A hash of each puzzle, int64 (n,), that no symmetry of Sudoku changes.

    Puzzles with different numbers are different under every symmetry. The same number, in rare
    cases, is that of different ones. Colors are refined in turn: a cell's comes of its row's, its
    column's, its box's and its digit's, and theirs of all their cells' (Weisfeiler and Leman 1968).
    """
    count, size = len(puzzles), board.size
    digit = puzzles.long()
    row, column, box = board.units_of.unbind(1)
    units = torch.zeros(count, 3 * size, dtype=torch.int64)
    names = torch.ones(count, size + 1, dtype=torch.int64)
    cells = torch.zeros(count, board.cells, dtype=torch.int64)
    square = board.box[0] == board.box[1]
    for _ in range(ROUNDS):
        names[:, 0] = 0
        lines = _mixed(units[:, row]) + _mixed(units[:, column] + (not square))
        cells = _mixed(lines + 3 * _mixed(units[:, box] + 2) + 5 * names.gather(1, digit))
        units = _mixed(cells[:, board.units].sum(2))
        names = _mixed(torch.zeros_like(names).scatter_add_(1, digit, cells))
    return _mixed(cells.sum(1))


def fingerprints(grid: Tensor) -> Tensor:
    """A hash of each grid, int64 (n,), that depends only on its digits."""
    return _mixed(_mixed(10 * torch.arange(grid.shape[1]) + grid.long()).sum(1))


def _mixed(values: Tensor) -> Tensor:
    """Hashes of int64 numbers, in arithmetic modulo 2**64 (the finalizer of splitmix64)."""
    values = values + 0x1E3779B97F4A7C15
    values = (values ^ (values >> 30)) * -0x40A7B892E31B1A47
    values = (values ^ (values >> 27)) * -0x6B2FB644ECCEEE15
    return values ^ (values >> 31)


def _pick(table: Tensor, draws: Tensor) -> Tensor:
    return table[(draws * len(table)).long()].long()


@cache
def _orders(count: int) -> Tensor:
    """All permutations, uint8 (count!, count)."""
    flat = itertools.chain.from_iterable(itertools.permutations(range(count)))
    return torch.frombuffer(bytearray(flat), dtype=torch.uint8).view(math.factorial(count), count)


@cache
def _line_orders(size: int, group: int) -> Tensor:
    """The orders of lines that keep the groups of `group` lines together, uint8 (orders, size)."""
    inside = list(itertools.product(_orders(group).tolist(), repeat=size // group))
    found = [
        [group * outer + line for outer in order for line in inner[outer]]
        for order in _orders(size // group).tolist()
        for inner in inside
    ]
    return torch.tensor(found, dtype=torch.uint8)
