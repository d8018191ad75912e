"""The command line of the scripts.

Four options choose the configuration and the folder of a run; tyro derives the other options from
the fields of the configuration.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

import torch
import tyro

from torch_revdeq.models.config import ModelConfig

from . import checkpoint as checkpoints
from .checkpoint import Checkpoint
from .config import Run, differences, from_dict, to_dict
from .errors import RunError
from .interruption import InterruptedRunError

MAY_CHANGE = {
    "updates", "micro_batch", "compile", "parallel", "device", "threads", "log_every",
    "evaluate_every", "evaluation_samples", "checkpoint_every", "keep",
}  # fmt: skip
"""Fields of `training` that may differ between a resumed run and its checkpoint."""


_types = tyro.constructors.ConstructorRegistry()
"""How tyro reads types that it does not know. Without a rule it makes such options fixed."""


@_types.primitive_rule
def _dtype(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[torch.dtype] | None:
    """A dtype by its name. ``state`` is a dtype or a word."""
    if info.type is not torch.dtype:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="DTYPE",
        instance_from_str=lambda words: _named_dtype(words[0]),
        is_instance=lambda value: isinstance(value, torch.dtype),
        str_from_instance=lambda value: [str(value).removeprefix("torch.")],
    )


def _named_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"expected a dtype of torch, got {name!r}")
    return dtype


@dataclasses.dataclass(frozen=True)
class Command(Generic[Run]):
    """The parsed command line."""

    run: Run
    out: Path
    resume: Checkpoint | None


def parse(
    presets: Mapping[str, Run], description: str, args: Sequence[str] | None = None
) -> Command[Run]:
    """Parse the command line. The first preset is the default.

    Raises:
        RunError: the folder, the checkpoint or the configuration is invalid.
        SystemExit: an unknown option or an invalid value; after --help.
    """
    first = next(iter(presets))
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", choices=list(presets), default=None)
    parser.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--resume", nargs="?", const=checkpoints.LATEST, metavar="CHECKPOINT")
    begin, rest = parser.parse_known_args(args)
    if begin.preset and begin.config:
        raise RunError("preset, config: expected one of them, got both; each sets all options")
    kind, out = type(presets[first]), begin.out or Path("runs") / (begin.preset or first)
    resume = checkpoints.open_checkpoint(out, begin.resume) if begin.resume else None
    if begin.config:
        default = _of_file(kind, begin.config)
    elif resume and not begin.preset:
        default = _of_checkpoint(kind, resume)
    else:
        default = presets[begin.preset or first]
    run = tyro.cli(
        tyro.conf.OmitArgPrefixes[kind],
        default=default,
        args=rest,
        description=f"{description}\n\n{_four(presets)}",
        registry=_types,
    )
    _check_functional(run.model)
    if resume:
        _check_same(run, resume)
    elif checkpoints.found(out):
        raise RunError(
            f"out: {out} already holds the checkpoints of a run; continue it with --resume, or "
            "choose another folder"
        )
    return Command(run, out, resume)


def script(name: str, main: Callable[[], object]) -> None:
    """Run a script's main function, and print the error that stops it in one line.

    The exit status is then 1, or the signal's for an interrupted run.
    """
    try:
        main()
    except InterruptedRunError as stop:
        print(f"{name}: {stop}", file=sys.stderr)
        raise SystemExit(stop.status) from None
    except RunError as error:
        raise SystemExit(f"{name}: {error}") from None


def _four(presets: Mapping[str, Any]) -> str:
    return (
        f"--preset {'|'.join(presets)}: the default values of the options below; or --config FILE, "
        "a JSON file with all options. --out FOLDER: the folder for checkpoints and log. --resume "
        "[CHECKPOINT]: continue the run in that folder, with its options, from its latest "
        "checkpoint or from the one named. --steps is the maximum number of solver steps in a "
        "forward pass; --updates is the number of training updates."
    )


def _of_file(kind: type[Run], path: Path) -> Run:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"config: {path} cannot be read: {error}") from error
    return from_dict(kind, values)


def _of_checkpoint(kind: type[Run], checkpoint: Checkpoint) -> Run:
    try:
        return from_dict(kind, checkpoint.facts.config)
    except RunError as error:
        raise RunError(
            f"{checkpoint.path}: its configuration does not fit this script and version: {error}"
        ) from error


def _check_functional(model: ModelConfig) -> None:
    """RunError for an exact state, the models' default, with "functional"."""
    if model.adjoint == "functional" and model.state in ("auto", "exact"):
        raise RunError(
            f"state: expected float32 or float64 with adjoint functional, got {model.state}; pass "
            "--state float32, or another --adjoint"
        )


def _check_same(run: Any, checkpoint: Checkpoint) -> None:
    """RunError if options that define the run differ from its checkpoint."""
    now, before = _lasting(to_dict(run)), _lasting(checkpoint.facts.config)
    if found := differences(now, before):
        raise RunError(
            f"resume: expected the options of {checkpoint.path}, got {'; '.join(found)}; "
            "leave these options out, or start a new run in another folder"
        )


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    training = {k: v for k, v in config["training"].items() if k not in MAY_CHANGE}
    return {**config, "training": training}
