"""Checkpoints: written whole or not at all, read only if whole.

    FOLDER/checkpoints/latest                the name of the newest
    FOLDER/checkpoints/update-00000200/
        model.safetensors                    the weights, by the model's own names
        optimizer.safetensors                the optimizer's state, by parameter
        checkpoint.json                      format, configuration, position, sizes and digests

It holds whole tensors, so that any number of processes can go on from it; ``state.py`` brings them
from and to these. Nothing in it is a pickle.
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
"""Counts up when what a checkpoint holds changes its meaning."""

WEIGHTS, OPTIMIZER, FACTS, LATEST = (
    "model.safetensors", "optimizer.safetensors", "checkpoint.json", "latest",
)  # fmt: skip

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Facts:
    """What a checkpoint holds beside the tensors.

    Attributes:
        config: of the run, see ``config.to_dict``.
        data: the identity of the run's data.
        update: updates that were done.
        samples: samples that they took: the position in the data.
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
    """A checkpoint that was found to be whole: its folder, and what it says."""

    path: Path
    facts: Facts


# ---- writing ---------------------------------------------------------------------------------


def write(folder: Path, facts: Facts, files: Mapping[str, Tensors], keep: int) -> Path:
    """Write a checkpoint, then make it the latest, then delete those before it but for the last.

    It is written into a folder of another name, which gets its own when everything is on the disk.

    Args:
        folder: of the run.
        facts: what it says.
        files: their tensors, by their names.
        keep: how many are left, this one included. Later ones, from which a run has gone back,
            stay.

    Raises:
        RunError: it cannot be written. What was there before is as it was.
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
    """Rename, over what may be there, and see that the folder says so on the disk."""
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
    """Bytes of a checkpoint, about: weights and AdamW's two moments."""
    return 3 * sum(p.numel() * p.element_size() for p in model.parameters())


def check_space(folder: Path, needed: int) -> None:
    """RunError where a checkpoint will not find room, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RunError(f"out: {folder} cannot be made: {error}") from error
    if free < needed:
        raise RunError(
            f"out: expected room for a checkpoint of {needed / 2**20:.0f} MiB in {folder}, got "
            f"{free / 2**20:.0f} MiB; free some, or choose another folder"
        )


# ---- reading ---------------------------------------------------------------------------------


def found(folder: Path) -> list[str]:
    """The names of the checkpoints in a run's folder, oldest first."""
    return sorted(p.name for p in (folder / "checkpoints").glob("update-*") if p.is_dir())


def open_checkpoint(folder: Path, name: str = LATEST) -> Checkpoint:
    """What a checkpoint says, when its files have been found to be what was written.

    Raises:
        RunError: there is none, or it is cut short, corrupted, or of another version.
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
                f"{path}: expected checkpoints of format {FORMAT}, got {held['format']}, of "
                "another version of these scripts; resume with that version"
            )
        for file, wanted in held["files"].items():
            _check_file(path / file, wanted["bytes"], wanted["sha256"])
        return Checkpoint(path, Facts(**{field.name: held[field.name] for field in fields(Facts)}))


def read_tensors(path: Path) -> Tensors:
    """The tensors of a file of a checkpoint."""
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
        state = "cut short" if got < size else "corrupted"
        raise RunError(
            f"{path}: is {state}: expected {size} bytes, got {got}; {_another(path.parent)}"
        )
    if _sha256(path) != digest:
        raise RunError(
            f"{path}: is corrupted: its digest is not the one written; {_another(path.parent)}"
        )


def _another(path: Path) -> str:
    """The way out: a checkpoint before this one."""
    others = [name for name in found(path.parent.parent) if name < path.name]
    return f"resume from {others[-1]}, the one before" if others else "there is none before it"


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
