"""Checkpoints, written atomically and verified when read.

    FOLDER/checkpoints/latest                the name of the newest
    FOLDER/checkpoints/update-00000200/
        model.safetensors                    the weights, by the model's own names
        optimizer.safetensors                the optimizer's state, by parameter
        checkpoint.json                      format, configuration, position, sizes and digests

A checkpoint holds unsharded tensors, so that any number of processes can continue from it;
``state.py`` gathers and distributes them. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import RunError

FORMAT = 1
"""Version of the format of checkpoints."""

WEIGHTS, OPTIMIZER, FACTS, LATEST = (
    "model.safetensors", "optimizer.safetensors", "checkpoint.json", "latest",
)  # fmt: skip

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Facts:
    """The content of a checkpoint other than tensors.

    Attributes:
        config: of the run, see ``config.to_dict``.
        data: the identity of the run's data.
        update: number of updates done.
        samples: number of samples used: the position in the data.
        schedule: the state of the learning rate's schedule.
        rates: the learning rate of each group of parameters.
    """

    config: dict[str, Any]
    data: str
    update: int
    samples: int
    schedule: dict[str, Any]
    rates: list[float]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its folder and its facts."""

    path: Path
    facts: Facts


# ---- writing ---------------------------------------------------------------------------------


def write(folder: Path, facts: Facts, files: Mapping[str, Tensors], keep: int) -> Path:
    """Write a checkpoint, mark it as the latest, and delete older ones.

    It is written into a temporary folder, which is renamed when everything is on disk.

    Args:
        folder: of the run.
        facts: its content other than tensors.
        files: its tensors, by file name.
        keep: number of checkpoints to keep, including this one. Later ones, which exist if the run
            was resumed from an earlier one, are not deleted.

    Raises:
        RunError: it cannot be written. Earlier checkpoints are unchanged.
    """
    name = f"update-{facts.update:08d}"
    checkpoints = folder / "checkpoints"
    unfinished = checkpoints / f".{name}.unfinished"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        _write_files(unfinished, facts, files)
        _replace(unfinished, checkpoints / name)
        _write_text(checkpoints / LATEST, name)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise RunError(
            f"{checkpoints / name}: cannot be written ({error}); {_another(checkpoints / name)}"
        ) from error
    for old in [other for other in found(folder) if other <= name][:-keep]:
        shutil.rmtree(checkpoints / old)
    return checkpoints / name


def _write_files(target: Path, facts: Facts, files: Mapping[str, Tensors]) -> None:
    for file, tensors in files.items():
        save_file(tensors, target / file)
        _on_disk(target / file)
    written = {
        file: {"bytes": (target / file).stat().st_size, "sha256": _sha256(target / file)}
        for file in files
    }
    held = {"format": FORMAT, "torch": torch.__version__, "files": written, **asdict(facts)}
    _write_text(target / FACTS, json.dumps(held, indent=1))


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text)
    _on_disk(unfinished)
    _replace(unfinished, path)


def _replace(source: Path, target: Path) -> None:
    """Rename, replacing an existing target, and flush the folder to disk."""
    if target.is_dir():
        aside = target.with_name(f".{target.name}.replaced")
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        source.rename(target)
        shutil.rmtree(aside)
    else:
        source.replace(target)
    _on_disk(target.parent)


def _on_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def space_needed(model: nn.Module) -> int:
    """Approximate bytes of a checkpoint: weights and AdamW's two moments."""
    return 3 * sum(p.numel() * p.element_size() for p in model.parameters())


def check_space(folder: Path, needed: int) -> None:
    """RunError if there is no room for a checkpoint, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RunError(f"out: {folder} cannot be created: {error}") from error
    if free < needed:
        raise RunError(
            f"out: expected room for a checkpoint of {needed / 2**20:.0f} MiB in {folder}, got "
            f"{free / 2**20:.0f} MiB; free some space, or choose another folder"
        )


# ---- reading ---------------------------------------------------------------------------------


def found(folder: Path) -> list[str]:
    """The names of the checkpoints in a run's folder, oldest first."""
    return sorted(p.name for p in (folder / "checkpoints").glob("update-*") if p.is_dir())


def open_checkpoint(folder: Path, name: str = LATEST) -> Checkpoint:
    """Open and verify a checkpoint.

    Raises:
        RunError: it does not exist, or is truncated, corrupted, or of another version.
    """
    checkpoints = folder / "checkpoints"
    if name == LATEST:
        try:
            name = (checkpoints / LATEST).read_text().strip()
        except OSError as error:
            others = f"; there are {', '.join(found(folder))}" if found(folder) else ""
            raise RunError(f"resume: no checkpoint in {checkpoints}{others}") from error
    path = checkpoints / name
    with _reading(path):
        held = json.loads((path / FACTS).read_text())
        if held["format"] != FORMAT:
            raise RunError(
                f"{path}: expected checkpoint format {FORMAT}, got {held['format']}, which another "
                "version of these scripts wrote; resume with that version"
            )
        for file, wanted in held["files"].items():
            _check_file(path / file, wanted["bytes"], wanted["sha256"])
        return Checkpoint(path, Facts(**{field.name: held[field.name] for field in fields(Facts)}))


def read_tensors(path: Path) -> Tensors:
    """The tensors in a file of a checkpoint."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: cannot be read ({error}); {_another(path.parent)}") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error}); {_another(path)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path / FACTS}: is corrupted ({error!r}); {_another(path)}") from error


def _check_file(path: Path, size: int, digest: str) -> None:
    got = path.stat().st_size
    if got != size:
        state = "truncated" if got < size else "corrupted"
        raise RunError(
            f"{path}: is {state}: expected {size} bytes, got {got}; {_another(path.parent)}"
        )
    if _sha256(path) != digest:
        raise RunError(
            f"{path}: is corrupted: its digest is not the one written; {_another(path.parent)}"
        )


def _another(path: Path) -> str:
    """How to continue: from an earlier checkpoint."""
    others = [name for name in found(path.parent.parent) if name < path.name]
    return f"resume from {others[-1]}, the previous one" if others else "there is no earlier one"


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
