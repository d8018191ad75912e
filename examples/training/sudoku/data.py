"""Puzzles with their solutions, and the cache of generated ones."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import SudokuData
from ..task import digest

FORMAT = 1
"""Version of the generator: increases when a configuration gives other puzzles."""

SHAPING = ("size", "clues", "train", "held_out", "puzzle_seed")
"""Fields of the configuration that determine the generated puzzles."""

NAMES = ("training.puzzles", "training.solutions", "held_out.puzzles", "held_out.solutions")


@dataclass(frozen=True)
class Sudoku:
    """Puzzles and their solutions, uint8 (count, size * size): 0 for blank, digits from 1.

    Attributes:
        training: puzzles and solutions to train on.
        held_out: others, with other solutions. If they were made here, no symmetry makes a puzzle
            of one part one of the other.
        size: rows, columns, and digits.
    """

    training: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    size: int


def keep(data: SudokuData, sudoku: Sudoku, folder: Path) -> None:
    """Write the puzzles into the folder, atomically.

    A folder that cannot be written is a warning, for the puzzles can be made again.
    """
    path = _path(data, folder)
    tensors: dict[str, Tensor] = dict(zip(NAMES, [*sudoku.training, *sudoku.held_out], strict=True))
    facts = _facts(data, digest(tensors.values()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A name of its own: several processes may write the same puzzles at once.
        handle, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=folder)
        try:
            save_file(tensors, unfinished, facts)
            os.fsync(handle)
            Path(unfinished).replace(path)
        except BaseException:
            Path(unfinished).unlink()
            raise
        finally:
            os.close(handle)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"data: {path} cannot be written ({error}); the next run generates the puzzles again",
            stacklevel=2,
        )


def kept(data: SudokuData, folder: Path) -> Sudoku | None:
    """The puzzles of a configuration, if the folder has a complete file."""
    try:
        with safe_open(_path(data, folder), "pt") as file:
            facts = file.metadata()
            found = [file.get_tensor(name) for name in NAMES]
    except (OSError, SafetensorError):
        return None
    if facts != _facts(data, digest(found)):
        return None
    return Sudoku((found[0], found[1]), (found[2], found[3]), data.size)


def cache_folder() -> Path:
    """The default folder of the cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "revdeq-kernels"


def _facts(data: SudokuData, contents: str) -> dict[str, str]:
    """Metadata of a file, in one entry because safetensors does not keep the order of several."""
    return {"sudoku": json.dumps({**_key(data), "digest": contents}, sort_keys=True)}


def _key(data: SudokuData) -> dict[str, object]:
    values = {name: value for name, value in asdict(data).items() if name in SHAPING}
    return {"format": FORMAT, **values}


def _path(data: SudokuData, folder: Path) -> Path:
    key = hashlib.sha256(json.dumps(_key(data), sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"sudoku-{data.size}x{data.size}-{key}.safetensors"
