"""The configuration of a run, as dataclasses and as dictionaries.

The whole configuration of a run is stored in its checkpoints as JSON, and every field is an option
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
    """Training, devices and processes, logging and checkpoints."""

    updates: int = 1000
    """Training updates: optimizer steps."""
    batch: int = 32
    """Samples per update, in total over all processes and accumulated micro batches."""
    micro_batch: int | None = None
    """Samples per forward pass in one process. None: batch divided by the number of processes."""
    lr: float = 3e-4
    """Peak learning rate."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of AdamW (not the solver's --beta)."""
    clip: float | None = None
    """Maximum gradient norm. None: no clipping."""
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    """plateau (the paper's): halves the rate when the loss stagnates. cosine: decays to a tenth of
    lr. constant: stays at lr."""
    warmup: int = 0
    """Updates in which the rate rises linearly to lr; must be 0 for plateau."""
    random_depth: tuple[int, int] | None = None
    """Minimum and maximum solver steps, drawn for every update. Evaluations use --steps."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: run forward and backward under autocast; parameters stay in float32."""
    compile: bool = False
    """Compile the model with torch.compile."""
    parallel: Literal["none", "ddp", "fsdp"] = "none"
    """Under torchrun: ddp replicates the model in every process, fsdp shards it."""
    device: str = "auto"
    """Device. auto: this process's GPU if there is one, else cpu."""
    threads: int | None = None
    """CPU threads per process. None: torch's default."""
    seed: int = 0
    """Seed of weights, order, augmentation, dropout and depth."""
    log_every: int = 10
    """Updates between lines of the log."""
    evaluate_every: int = 200
    """Updates between evaluations."""
    evaluation_samples: int | None = None
    """Held-out samples per evaluation during training. None: all. The last one uses all."""
    checkpoint_every: int = 200
    """Updates between checkpoints."""
    keep: int = 2
    """Number of newest checkpoints to keep."""

    def __post_init__(self) -> None:
        """RunError for invalid numbers."""
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
                "random_depth: expected a minimum and a maximum of at least 1, got "
                f"{self.random_depth}"
            )


@dataclass(frozen=True)
class TextData:
    """Text to train on."""

    source: Literal["stdlib", "wikitext-103"] = "stdlib"
    """stdlib: the sources of this Python's standard library, as bytes. wikitext-103: from the
    Hugging Face hub; needs datasets and transformers."""
    tokenizer: str = "gpt2"
    """Tokenizer for wikitext-103: a name on the Hugging Face hub, or a folder."""


@dataclass(frozen=True)
class ImageData:
    """Images to train on."""

    source: Literal["digits", "cifar10"] = "digits"
    """digits: 8x8 pixels, from scikit-learn. cifar10: from the Hugging Face hub; needs datasets."""
    augment: bool = True
    """Augment with random crops and, for cifar10, mirror images."""


@dataclass(frozen=True)
class SudokuData:
    """Puzzles to train on."""

    source: Literal["generated", "sudoku-extreme", "csv"] = "generated"
    """generated: made by this script and cached in the user's cache folder. sudoku-extreme: the
    published puzzles, from the Hugging Face hub; needs huggingface_hub. csv: files of that form."""
    folder: str | None = None
    """For csv: the folder of train.csv and test.csv, with the columns question and answer."""
    size: Literal[4, 6, 9] = 4
    """Number of rows, columns and digits."""
    clues: int | None = None
    """For generated: clues per puzzle; more if fewer leave several solutions. None: 6 for size 4,
    12 for size 6, and as few as possible for size 9."""
    train: int = 1000
    """Number of puzzles to train on."""
    held_out: int = 128
    """Number of held-out puzzles, which have other solutions."""
    augment: bool = True
    """Apply random symmetries: permute digits, bands, stacks, rows and columns, and transpose."""
    puzzle_seed: int = 0
    """Seed of the puzzles; --seed is the seed of the run."""

    def __post_init__(self) -> None:
        """RunError for invalid values."""
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
                f"folder: expected one with source csv, and None with any other, got {self.folder} "
                f"with source {self.source}"
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
    """Deep supervision of a recursive model."""

    passes: int = 8
    """Maximum passes per puzzle, in training and evaluation."""
    explore: float = 0.1
    """Probability that a puzzle must continue for a randomly drawn number of passes before it may
    halt."""
    average: float = 0.99
    """Decay of the moving average of the weights, which evaluations use. 0: the newest weights."""
    backward_steps: int | None = None
    """Number of last solver steps of a pass to differentiate. None: all."""

    def __post_init__(self) -> None:
        """RunError for invalid numbers."""
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
    """Nested dictionaries of JSON values."""
    return {**asdict(run), "model": run.model.to_dict()}


def from_dict(kind: type[Run], values: Any) -> Run:
    """The run of these values: the inverse of ``to_dict``.

    Raises:
        RunError: an unknown key, a value of the wrong type, or an invalid value.
    """
    return _build(kind, values, "config")


def differences(one: dict[str, Any], other: dict[str, Any], path: str = "") -> list[str]:
    """The differences between two configurations, in words: this value, then the other."""
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
    """The value, with JSON lists converted to tuples."""
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
