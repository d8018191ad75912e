"""A solver of thousands of Sudoku puzzles at once.

A puzzle is a column of bit masks, int16 (cells, n): bit d is set where a cell may hold digit d + 1.
Propagation removes the digits that the rules exclude. When it makes no more progress, the cell with
the fewest candidates is tried with one of them, and then with the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .board import Board

CHUNK = 2048
"""Puzzles that are propagated at once: as many as a core's cache holds."""


def masks(puzzles: Tensor, board: Board) -> Tensor:
    """The bit masks (cells, n) of puzzles, uint8 (n, cells) with 0 for blank."""
    digits = puzzles.T.to(torch.int16)
    return torch.where(digits > 0, 1 << (digits - 1).clamp(min=0), board.all_digits)


def digits(boards: Tensor) -> Tensor:
    """The digits, uint8 (n, cells), of bit masks (cells, n) with one bit each."""
    return (boards.float().log2() + 1).T.to(torch.uint8).contiguous()


def search(
    boards: Tensor, board: Board, limit: int = 1, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The number of solutions of each board, and one of them.

    Args:
        boards: bit masks (cells, n).
        board: the rules.
        limit: how many solutions to count.
        generator: which digit is tried first is drawn from it; None: the smallest.

    Returns:
        solutions found, int64 (n,), at most `limit`; the first of each, uint8 (n, cells), 0 where
        there is none.
    """
    with one_thread():
        return _search(boards, board, limit, generator)


def _search(
    boards: Tensor, board: Board, limit: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    count = boards.shape[1]
    counts = torch.zeros(count, dtype=torch.int64)
    found = torch.zeros(count, board.cells, dtype=torch.uint8)
    owners = torch.arange(count)
    while len(owners):
        # The newest first: depth first, so that few wait.
        owner, now = owners[-CHUNK:], boards[:, -CHUNK:]
        owners, boards = owners[:-CHUNK], boards[:, :-CHUNK]
        wanted = counts[owner] < limit
        owner, now = owner[wanted], propagate(now[:, wanted], board)
        dead = (now == 0).any(0)
        solved = _single(now).all(0) & ~dead
        _record(owner[solved], digits(now[:, solved]), counts, found)
        undecided = ~(dead | solved)
        owner = owner[undecided]
        first, others = _split(now[:, undecided], board, generator)
        owners = torch.cat([owners, owner, owner])
        boards = torch.cat([boards, others, first], 1)
    return counts.clamp(max=limit), found


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread: for operations this small, waiting for a second one takes far longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def twice(boards: Tensor, board: Board) -> Tensor:
    """Digits that occur more than once in a unit, masks (units, n). `boards`: 0 for blank."""
    any_place, one_place = _places(boards, board)
    return any_place & ~one_place


def propagate(boards: Tensor, board: Board) -> Tensor:
    """The boards without the digits that the rules exclude; all zeros where a rule is broken."""
    boards = boards.clone()
    active = torch.arange(boards.shape[1])
    while len(active):
        before = boards[:, active]
        after = _round(before, board)
        boards[:, active] = after
        active = active[((after != before).any(0)) & (after[0] != 0)]
    return boards


def _round(boards: Tensor, board: Board) -> Tensor:
    """One round of two rules: a digit occurs once in a unit; every digit occurs in a unit."""
    single = _single(boards)
    decided = torch.where(single, boards, 0)
    any_place, one_place = _places(boards, board)
    placed, placed_once = _places(decided, board)
    broken = ((any_place != board.all_digits) | (placed != placed_once)).any(0)
    row, column, box = board.units_of.unbind(1)
    excluded = placed[row] | placed[column] | placed[box]
    left = torch.where(single, boards, boards & ~excluded)
    forced = left & (one_place[row] | one_place[column] | one_place[box])
    left = torch.where(forced != 0, forced, left)
    return left.masked_fill_(broken, 0)


def _places(boards: Tensor, board: Board) -> tuple[Tensor, Tensor]:
    """Digits with at least one place in a unit, and with exactly one; masks (units, n)."""
    any_place = boards[board.units[:, 0]]
    more = torch.zeros_like(any_place)
    for cells in board.units.T[1:]:
        here = boards[cells]
        more |= any_place & here
        any_place |= here
    return any_place, any_place & ~more


def _single(boards: Tensor) -> Tensor:
    """Whether at most one digit is left."""
    return (boards & (boards - 1)) == 0


def _split(
    boards: Tensor, board: Board, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Split each board: one digit in the cell with the fewest candidates, or all others."""
    which = torch.arange(boards.shape[1])
    candidates = sum((boards >> digit) & 1 for digit in range(board.size))
    assert isinstance(candidates, Tensor)
    cell = candidates.masked_fill(candidates < 2, board.size + 1).argmin(0)
    value = boards[cell, which]
    digit = value & -value
    if generator is not None:
        bits = 1 << torch.arange(board.size, dtype=torch.int16)
        rank = torch.rand(len(value), board.size, generator=generator)
        digit = bits[rank.masked_fill((value[:, None] & bits) == 0, -1).argmax(1)]
    first, others = boards.clone(), boards.clone()
    first[cell, which] = digit
    others[cell, which] = value & ~digit
    return first, others


def _record(owner: Tensor, solutions: Tensor, counts: Tensor, found: Tensor) -> None:
    """Count the solutions of each puzzle, and keep the first one."""
    order = torch.arange(len(owner))
    first = torch.full_like(counts, len(owner))
    first.scatter_reduce_(0, owner, order, "amin")
    new = (first[owner] == order) & (counts[owner] == 0)
    found[owner[new]] = solutions[new]
    counts.index_add_(0, owner, torch.ones_like(owner))
