"""Runs of examples/training small enough for tests: a few hundred bytes, a few updates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_revdeq.models import LanguageConfig, LanguageModel
from training import logs
from training.checkpoint import LATEST, Checkpoint, open_checkpoint
from training.config import LanguageRun, TextData, Training
from training.loop import Trainer
from training.order import seed_of
from training.parallel import Place
from training.text import Text, TextTask

ALONE = Place(0, 1, torch.device("cpu"))

MODEL = LanguageConfig(vocab_size=256, width=16, heads=2, context=8, hidden=16, steps=2)

TRAINING = Training(
    updates=6, batch=8, lr=1e-2, clip=1.0, schedule="cosine", warmup=2,
    log_every=1, evaluate_every=3, checkpoint_every=3, device="cpu",
)  # fmt: skip


def toy(model: dict[str, Any] | None = None, **training: Any) -> LanguageRun:
    """A run with these options."""
    return LanguageRun(
        dataclasses.replace(MODEL, **(model or {})),
        TextData(),
        dataclasses.replace(TRAINING, **training),
    )


def document(length: int, seed: int) -> Tensor:
    """Bytes that each depend on the previous one, so that there is something to learn."""
    draws = torch.randint(4, (length,), generator=torch.Generator().manual_seed(seed))
    return (97 + torch.cumsum(draws, 0) % 20).to(torch.uint8)


def task(seed: int = 0) -> TextTask:
    """48 training windows, so that an epoch ends within the fifth update of eight; 10 held out."""
    documents = [document(147, seed), document(150, seed + 1)]
    text = Text(documents, document(83, seed + 2), vocabulary=256, byte_tokens=True)
    return TextTask(text, MODEL.context)


def trainer(
    run: LanguageRun, folder: Path, resume: str | None = None, place: Place = ALONE, seed: int = 0
) -> Trainer:
    """A trainer, created like in train_lm.py."""
    checkpoint: Checkpoint | None = open_checkpoint(folder, resume) if resume else None
    torch.manual_seed(seed_of(run.training.seed, "weights"))
    return Trainer(run, LanguageModel(run.model), task(seed), place, folder, checkpoint)


def resumed(run: LanguageRun, folder: Path, name: str = LATEST) -> Trainer:
    """The same, resumed from a checkpoint."""
    return trainer(run, folder, name)


def losses(folder: Path) -> list[float]:
    """The loss of every update in a run's log."""
    return [r["loss"] for r in logs.read(folder / "log.jsonl") if r["kind"] == "training"]


class CutError(Exception):
    """Raised to interrupt a run."""


def cut_after(update: int) -> Any:
    """For ``Trainer.train``: the run ends by an exception after this update."""

    def on_update(done: int) -> None:
        if done == update:
            raise CutError

    return on_update
