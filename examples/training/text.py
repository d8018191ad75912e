"""Language modeling as a task: predict each token in a window from the tokens before it."""

from __future__ import annotations

import hashlib
import math
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .config import TextData
from .errors import RunError
from .task import Batch, digest

LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "lib2to3",
    "turtledemo", "_bundled", "__pycache__",
}  # fmt: skip
"""Folders of the library with third-party code, or with repetitive tests and tables."""

HELD_OUT = 20
"""One in HELD_OUT files is held out."""


@dataclass(frozen=True)
class Text:
    """Tokens, of any integer dtype, and their properties.

    Attributes:
        training: the documents to train on.
        held_out: all other documents, concatenated.
        vocabulary: number of different tokens.
        byte_tokens: whether a token is a byte.
    """

    training: list[Tensor]
    held_out: Tensor
    vocabulary: int
    byte_tokens: bool


class TextTask:
    """Windows of `context` tokens, with other offsets in every epoch. See ``task.Task``."""

    unit = "tokens"

    def __init__(self, text: Text, context: int) -> None:
        self.units, self.byte_tokens = context, text.byte_tokens
        self.tokens = torch.cat(text.training)
        # A window may start up to a context later, and the token after it is predicted too.
        self.size = (len(self.tokens) - context) // context
        self.held_out = (len(text.held_out) - 1) // context
        if self.size < 1 or self.held_out < 1:
            raise RunError(
                f"context: expected a text of at least {2 * context} tokens to train on and "
                f"{context + 1} held out, got {len(self.tokens)} and {len(text.held_out)}; choose "
                "a shorter context"
            )
        self.held_out_tokens = text.held_out[: self.held_out * context + 1]
        self.identity = digest([self.tokens, self.held_out_tokens])

    def training(self, indices: Tensor, draws: Tensor) -> Batch:
        """Windows (count, context), and the next token at each position."""
        starts = indices * self.units + (draws[:, 0] * self.units).long()
        return _windows(self.tokens, starts, self.units)

    def evaluation(self, indices: Tensor) -> Batch:
        """Consecutive windows of the held-out text."""
        return _windows(self.held_out_tokens, indices * self.units, self.units)

    def figures(self, loss: float, accuracy: float) -> dict[str, float]:
        """Perplexity per token and, if tokens are bytes, bits per byte."""
        found = {"perplexity": math.exp(min(loss, 700.0))}
        if self.byte_tokens:
            found["bits_per_byte"] = loss / math.log(2)
        return found


def load_text(data: TextData) -> Text:
    """The text that the configuration names.

    Raises:
        RunError: it is not available.
    """
    if data.source == "stdlib":
        return standard_library()
    from .hub import wikitext

    return wikitext(data.tokenizer)


def standard_library(root: Path | None = None) -> Text:
    """The sources of the standard library, including documentation, one document per file.

    Which files are held out depends only on their names. `root`: another folder of sources.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    training, held_out = [], []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        content = b"" if LEFT_OUT & set(name.parts) else path.read_bytes()
        if content:
            tokens = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            (held_out if is_held_out(name.as_posix()) else training).append(tokens)
    if not training or not held_out:
        raise RunError(
            f"data: expected the sources of the standard library in {root}, found {len(training)} "
            f"files to train on and {len(held_out)} held out; use a Python that has them"
        )
    return Text(training, torch.cat(held_out), vocabulary=256, byte_tokens=True)


def is_held_out(name: str) -> bool:
    """Whether a file is held out, by its path in the library."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % HELD_OUT == 0


def _windows(tokens: Tensor, starts: Tensor, length: int) -> Batch:
    rows = tokens[starts[:, None] + torch.arange(length + 1)].long()
    return rows[:, :-1], rows[:, 1:]
