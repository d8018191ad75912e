"""The models of arXiv 2509.12917, and a modern language model, around ``RevDEQ`` layers.

``LanguageModel`` and ``VisionModel`` are built from a frozen config, which goes to JSON and back.
Here are architectures only: data, training and checkpoints are the user's, or the examples'.
"""

from __future__ import annotations

from .language import LanguageConfig, LanguageModel
from .vision import VisionConfig, VisionModel

__all__ = ["LanguageConfig", "LanguageModel", "VisionConfig", "VisionModel"]


def __dir__() -> list[str]:
    return sorted({*__all__, "__doc__"})
