"""Sudoku as a task: predict the digit of every cell."""

from __future__ import annotations

import torch
from torch import Tensor

from ..task import Batch, digest
from .board import board_of
from .data import Sudoku
from .symmetry import transformed


class SudokuTask:
    """Puzzles, and the digits of their solutions as classes from 1; see ``task.Task``."""

    unit = "puzzles"
    units = 1

    def __init__(self, sudoku: Sudoku, *, augment: bool) -> None:
        self.augment, self.board = augment, board_of(sudoku.size)
        self.pairs, self.held_out_pairs = torch.stack(sudoku.training), torch.stack(sudoku.held_out)
        self.size, self.held_out = len(sudoku.training[0]), len(sudoku.held_out[0])
        self.identity = digest([*sudoku.training, *sudoku.held_out])

    def training(self, indices: Tensor, draws: Tensor) -> Batch:
        """Puzzles and solutions (count, cells), each pair under a random symmetry if configured."""
        pairs = self.pairs[:, indices]
        if self.augment:
            pairs = transformed(pairs, draws, self.board)
        return pairs[0].long(), pairs[1].long()

    def evaluation(self, indices: Tensor) -> Batch:
        """Held-out puzzles and solutions, without augmentation."""
        pairs = self.held_out_pairs[:, indices]
        return pairs[0].long(), pairs[1].long()

    def figures(self, loss: float, accuracy: float) -> dict[str, float]:
        """The share of cells that are predicted correctly."""
        return {"cell_accuracy": accuracy}
