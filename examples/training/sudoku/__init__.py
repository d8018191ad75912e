"""Sudoku puzzles: generated from a seed, or read from the published files.

Each puzzle is checked to have exactly one solution before training, and no held-out solution is
trained on.
"""

from __future__ import annotations

from pathlib import Path

from ..config import SudokuData
from .checks import check
from .data import Sudoku, cache_folder, keep, kept
from .files import read_folder
from .generator import generated
from .symmetry import augmented
from .task import SudokuTask

__all__ = ["Sudoku", "SudokuData", "SudokuTask", "augmented", "check", "generated", "load_sudoku"]


def load_sudoku(data: SudokuData, folder: Path | None = None) -> Sudoku:
    """The puzzles that the configuration names.

    Args:
        data: the configuration.
        folder: where puzzles that are made are kept, so that the next run reads them; None: the
            user's cache.

    Raises:
        RunError: they are not available, or a puzzle is invalid.
    """
    if data.source == "sudoku-extreme":
        from ..hub import sudoku_extreme

        return read_folder(data, sudoku_extreme())
    if data.source == "csv":
        return read_folder(data, Path(data.folder or "."))
    folder = folder or cache_folder()
    found = kept(data, folder)
    if found is None:
        found = generated(data)
        keep(data, found, folder)
    return found
