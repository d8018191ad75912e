"""Configurations by name."""

from __future__ import annotations

from torch_revdeq.models import LanguageConfig, RecursiveConfig, VisionConfig

from .config import (
    ImageData,
    ImageRun,
    LanguageRun,
    Reasoning,
    ReasoningRun,
    SudokuData,
    TextData,
    Training,
)

LANGUAGE = {
    "tiny": LanguageRun(
        LanguageConfig(
            vocab_size=256, width=64, heads=4, context=128, hidden=176, steps=2, tied_head=False
        ),
        TextData("stdlib"),
        Training(
            updates=1000,
            batch=16,
            lr=5e-3,
            weight_decay=0.1,
            betas=(0.9, 0.99),
            clip=1.0,
            schedule="cosine",
            warmup=50,
            evaluation_samples=256,
            threads=1,  # a second thread gains little for tensors this small
        ),
    ),
    "paper": LanguageRun(
        LanguageConfig.paper(),
        TextData("wikitext-103"),
        Training(
            updates=82_000, checkpoint_every=1000, evaluate_every=1000, evaluation_samples=512
        ),
    ),
}
"""Presets of train_lm.py. tiny: minutes on a CPU. paper: Wikitext-103 as in arXiv 2509.12917,
about 10 epochs."""

IMAGES = {
    "digits": ImageRun(
        VisionConfig.single_scale(in_channels=1),
        ImageData("digits"),
        Training(updates=400, batch=64, lr=3e-3, schedule="cosine", warmup=20, threads=1),
    ),
    "paper": ImageRun(
        VisionConfig.multi_stage(),
        ImageData("cifar10"),
        Training(updates=78_125, batch=64, checkpoint_every=1000, evaluate_every=1000),
    ),
    "paper-single": ImageRun(
        VisionConfig.single_scale(),
        ImageData("cifar10"),
        Training(updates=78_125, batch=64, lr=1e-3, checkpoint_every=1000, evaluate_every=1000),
    ),
}
"""Presets of train_image.py. digits: a minute on a CPU. paper, paper-single: CIFAR-10, 100
epochs."""

REASONING = {
    "4x4": ReasoningRun(
        RecursiveConfig(vocab_size=5, length=16, width=48, hidden=96, layers=1, latent_steps=2),
        SudokuData(size=4, train=1000, held_out=128),
        Training(
            updates=400,
            batch=32,
            lr=3e-3,
            weight_decay=0.1,
            betas=(0.9, 0.95),
            clip=1.0,
            schedule="cosine",
            warmup=20,
            evaluate_every=50,
            checkpoint_every=100,
            threads=1,
        ),
    ),
    "6x6": ReasoningRun(
        RecursiveConfig(vocab_size=7, length=36, width=48, hidden=96, layers=1, latent_steps=2),
        SudokuData(size=6, clues=12, train=5000, held_out=256),
        Training(
            updates=1500,
            batch=64,
            lr=3e-3,
            weight_decay=0.1,
            betas=(0.9, 0.95),
            clip=1.0,
            schedule="cosine",
            warmup=50,
            evaluate_every=100,
            checkpoint_every=100,
            threads=1,
        ),
    ),
    "sudoku-extreme": ReasoningRun(
        RecursiveConfig.trm(vocab_size=10, length=81),
        SudokuData(source="sudoku-extreme", size=9, train=1000, held_out=10_000),
        Training(
            updates=65_000,
            batch=768,
            lr=1e-4,
            weight_decay=1.0,
            betas=(0.9, 0.95),
            clip=1.0,
            schedule="constant",
            warmup=2000,
            evaluate_every=2000,
            evaluation_samples=1000,
            checkpoint_every=1000,
        ),
        Reasoning(passes=16, average=0.999),
    ),
}
"""Presets of train_reasoning.py. 4x4: minutes on a CPU. 6x6: longer. sudoku-extreme: the published
puzzles and the sizes of arXiv 2510.04871, for a GPU."""
