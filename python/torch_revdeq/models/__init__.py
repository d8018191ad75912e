"""Models with ``RevDEQ`` layers: language, vision, and puzzles solved by recursion.

``LanguageModel`` and ``VisionModel`` include the models of arXiv 2509.12917, and a modern language
model; ``RecursiveModel`` is in the family of TRM, arXiv 2510.04871. Each is built from a frozen
config that converts to JSON and back. Only architectures are here: data, training and checkpoints
are up to you; see the examples.
"""

from __future__ import annotations

from .language import LanguageConfig, LanguageModel
from .recursive import Carry, RecursiveConfig, RecursiveModel
from .vision import VisionConfig, VisionModel

__all__ = [
    "Carry",
    "LanguageConfig",
    "LanguageModel",
    "RecursiveConfig",
    "RecursiveModel",
    "VisionConfig",
    "VisionModel",
]


def __dir__() -> list[str]:
    return sorted({*__all__, "__doc__"})
