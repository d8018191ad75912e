"""The command line of the scripts.

Four options say where a run begins; tyro makes the others of the fields of its configuration.
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
"""Of `training`, what a resumed run may have otherwise than its checkpoint."""


_types = tyro.constructors.ConstructorRegistry()
"""How tyro reads types that it does not know: with one of them in its union, an option is fixed."""


@_types.primitive_rule
def _dtype(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[torch.dtype] | None:
    """A dtype by its name. ``state`` is one, or a word."""
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
    """What the command line asked for."""

    run: Run
    out: Path
    resume: Checkpoint | None


def parse(
    presets: Mapping[str, Run], description: str, args: Sequence[str] | None = None
) -> Command[Run]:
    """The run that the command line asks for. The first preset is the default.

    Raises:
        RunError: the folder, the checkpoint or the configuration is not as it must be.
        SystemExit: an unknown option, or one with a value that it cannot have; after --help.
    """
    first = next(iter(presets))
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", choices=list(presets), default=None)
    parser.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--resume", nargs="?", const=checkpoints.LATEST, metavar="CHECKPOINT")
    begin, rest = parser.parse_known_args(args)
    if begin.preset and begin.config:
        raise RunError("preset, config: expected one of them, since each says all there is")
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
            f"out: {out} holds the checkpoints of a run; go on with it by --resume, or choose "
            "another folder"
        )
    return Command(run, out, resume)


def script(name: str, main: Callable[[], object]) -> None:
    """Run a script's main function; what stops the run ends the process with one line.

    The status is 1; for a run that was interrupted that of the signal.
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
        f"--preset {'|'.join(presets)}: where the options begin; or --config FILE, a JSON file of "
        "them all. --out FOLDER: where checkpoints and log go. --resume [CHECKPOINT]: go on with "
        "the run in that folder, with the options that it has, from its latest checkpoint or the "
        "one named."
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
            f"{checkpoint.path}: its configuration is not one of this script and version: {error}"
        ) from error


def _check_functional(model: ModelConfig) -> None:
    """RunError for an exact state, which the models have by default, with "functional"."""
    if model.adjoint == "functional" and model.state in ("auto", "exact"):
        raise RunError(
            f"state: expected float32 or float64 with adjoint functional, got {model.state}; pass "
            "--state float32, or another --adjoint"
        )


def _check_same(run: Any, checkpoint: Checkpoint) -> None:
    """RunError where the options say otherwise than the checkpoint in what makes the run."""
    now, before = _lasting(to_dict(run)), _lasting(checkpoint.facts.config)
    if found := differences(now, before):
        raise RunError(
            f"resume: expected what {checkpoint.path} was trained with, got {'; '.join(found)}; "
            "leave these options out, or begin anew in another folder"
        )


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    training = {k: v for k, v in config["training"].items() if k not in MAY_CHANGE}
    return {**config, "training": training}
