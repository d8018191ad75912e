"""What a run is set by: dataclasses, and dictionaries that hold the same.

A run's whole configuration lies beside its checkpoints as JSON, and every field of it is an option
of the command line (see ``command.py``).
"""

from __future__ import annotations

import types
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from torch_revdeq.models import LanguageConfig, RecursiveConfig, VisionConfig

from .errors import RunError

Run = TypeVar("Run", bound="AnyRun")


@dataclass(frozen=True)
class Training:
    """How the model is trained, on how many processes, and what is written down of it."""

    updates: int = 1000
    """Steps of the optimizer."""
    batch: int = 32
    """Samples of one update, over all processes and what is accumulated."""
    micro_batch: int | None = None
    """Samples of one forward pass in one process; None: batch over the number of processes."""
    lr: float = 3e-4
    """Learning rate, at its highest."""
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    """Largest norm of the gradient; None: as it comes."""
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    """plateau halves the rate where the loss stagnates (the paper's); cosine ends at a tenth."""
    warmup: int = 0
    """Updates in which the rate rises from 0; not for plateau."""
    random_depth: tuple[int, int] | None = None
    """Least and most steps of the solver, drawn anew for every update; evaluation takes steps."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: forward and backward under autocast; the parameters stay in float32."""
    compile: bool = False
    """torch.compile the model."""
    parallel: Literal["none", "ddp", "fsdp"] = "none"
    """Under torchrun: ddp copies the model to every process, fsdp shards it among them."""
    device: str = "auto"
    """auto: this process's GPU if there is one, else cpu."""
    threads: int | None = None
    """Threads of a process on the CPU; None: as torch has it."""
    seed: int = 0
    log_every: int = 10
    """Updates from one line of the log to the next."""
    evaluate_every: int = 200
    evaluation_samples: int | None = None
    """Held-out samples of an evaluation on the way; None, and at the end: all."""
    checkpoint_every: int = 200
    keep: int = 2
    """Checkpoints to keep, the newest."""

    def __post_init__(self) -> None:
        """RunError for numbers that no run can have."""
        least = {"updates": 1, "batch": 1, "log_every": 1, "evaluate_every": 1, "keep": 1}
        least = {**least, "checkpoint_every": 1, "evaluation_samples": 1, "threads": 1, "warmup": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise RunError(f"{name}: expected at least {bound}, got {value}")
        if self.warmup and self.schedule == "plateau":
            raise RunError(
                f"warmup: expected 0 with schedule plateau, got {self.warmup}; choose cosine or "
                "constant"
            )
        if not self.lr > 0:
            raise RunError(f"lr: expected a positive number, got {self.lr}")
        if self.random_depth and not 1 <= self.random_depth[0] <= self.random_depth[1]:
            raise RunError(
                f"random_depth: expected least and most steps, 1 or more, got {self.random_depth}"
            )


@dataclass(frozen=True)
class TextData:
    """Where the text comes from."""

    source: Literal["stdlib", "wikitext-103"] = "stdlib"
    """stdlib: the sources of this Python's standard library, as bytes. wikitext-103: from the
    Hugging Face hub, which needs datasets and transformers."""
    tokenizer: str = "gpt2"
    """Of the hub, or a folder; for wikitext-103."""


@dataclass(frozen=True)
class ImageData:
    """Where the images come from."""

    source: Literal["digits", "cifar10"] = "digits"
    """digits: 8x8, with scikit-learn. cifar10: from the Hugging Face hub, which needs datasets."""
    augment: bool = True
    """Random crops, and for cifar10 mirror images."""


@dataclass(frozen=True)
class SudokuData:
    """Where the puzzles come from."""

    source: Literal["generated", "sudoku-extreme", "csv"] = "generated"
    """generated: made here, and kept in the user's cache. sudoku-extreme: the published puzzles,
    from the Hugging Face hub, which needs huggingface_hub. csv: files like those, on disk."""
    folder: str | None = None
    """Of csv: where train.csv and test.csv are, with the columns question and answer."""
    size: Literal[4, 6, 9] = 4
    """Rows, columns, and digits."""
    clues: int | None = None
    """Of generated: how many are left, and more where fewer leave several solutions; None: 6 of 4x4
    cells, 12 of 6x6, and as few as possible of 9x9."""
    train: int = 1000
    """Puzzles to train on."""
    held_out: int = 128
    """Puzzles that are held out, with other solutions."""
    augment: bool = True
    """Digits named anew, bands, stacks, rows and columns in other places, and transposition."""
    puzzle_seed: int = 0
    """Of the puzzles; seed is the run's."""

    def __post_init__(self) -> None:
        """RunError for what no puzzles can be of."""
        for name in ("train", "held_out"):
            if getattr(self, name) < 1:
                raise RunError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.clues is not None and not 0 <= self.clues < self.size**2:
            raise RunError(
                f"clues: expected 0 to {self.size**2 - 1} of {self.size**2} cells, got {self.clues}"
            )
        if self.source == "sudoku-extreme" and self.size != 9:
            raise RunError(f"size: expected 9 with source sudoku-extreme, got {self.size}")
        if (self.source == "csv") != (self.folder is not None):
            raise RunError(
                f"folder: expected one with source csv and with no other, got {self.folder} with "
                f"{self.source}"
            )


@dataclass(frozen=True)
class LanguageRun:
    """A run of train_lm.py."""

    model: LanguageConfig
    data: TextData = field(default_factory=TextData)
    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class ImageRun:
    """A run of train_image.py."""

    model: VisionConfig
    data: ImageData = field(default_factory=ImageData)
    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class Reasoning:
    """How a recursive model is supervised, pass after pass."""

    passes: int = 8
    """Most passes that a puzzle takes, in training and evaluation."""
    explore: float = 0.1
    """Share of puzzles that, after a pass, may not halt before a number of passes that is drawn."""
    average: float = 0.99
    """Decay of the moving average of the weights, which evaluations use; 0: the newest weights."""
    backward_steps: int | None = None
    """Of a pass, the last steps that are differentiated; None: all."""

    def __post_init__(self) -> None:
        """RunError for numbers that no run can have."""
        for name in ("passes", "backward_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RunError(f"{name}: expected at least 1, got {value}")
        for name in ("explore", "average"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise RunError(f"{name}: expected a number in [0, 1), got {value}")


@dataclass(frozen=True)
class ReasoningRun:
    """A run of train_reasoning.py."""

    model: RecursiveConfig
    data: SudokuData = field(default_factory=SudokuData)
    training: Training = field(default_factory=Training)
    reasoning: Reasoning = field(default_factory=Reasoning)


AnyRun: TypeAlias = LanguageRun | ImageRun | ReasoningRun


def to_dict(run: AnyRun) -> dict[str, Any]:
    """Nested dictionaries of what JSON holds."""
    return {**asdict(run), "model": run.model.to_dict()}


def from_dict(kind: type[Run], values: Any) -> Run:
    """The run that ``to_dict`` was given.

    Raises:
        RunError: a key that is unknown, a value of another type, or one that no run can have.
    """
    return _build(kind, values, "config")


def differences(one: dict[str, Any], other: dict[str, Any], path: str = "") -> list[str]:
    """What differs between two configurations, as sentences: this one's value, then the other's."""
    found = []
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{path}{key}.")
        elif _plain(a) != _plain(b):
            found.append(f"{path}{key} {a!r} against {b!r}")
    return found


def _build(kind: Any, values: Any, path: str) -> Any:
    if not isinstance(values, dict):
        raise RunError(f"{path}: expected named values, got {values!r}")
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise RunError(
            f"{path}: unknown key {', '.join(map(repr, unknown))}; known are "
            f"{', '.join(sorted(known))}"
        )
    hints = get_type_hints(kind)
    built = {}
    for name, value in values.items():
        if is_dataclass(hints[name]):
            built[name] = _build(hints[name], value, f"{path}.{name}")
        else:
            built[name] = _value(value, hints[name], f"{path}.{name}")
    try:
        return kind(**built)
    except (TypeError, ValueError) as error:
        raise RunError(f"{path}: {error}") from error


def _value(value: Any, hint: Any, path: str) -> Any:
    """The value, lists of JSON made the tuples that they were."""
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, hint):
        wanted = getattr(hint, "__name__", None) if isinstance(hint, type) else None
        raise RunError(f"{path}: expected {wanted or hint}, got {value!r}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in args
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        args = args[:1] * len(value) if args[-1:] == (...,) else args
        same = isinstance(value, tuple) and len(value) == len(args)
        return same and all(map(_fits, value, args))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
