"""Generation: the equilibria of a growing text, and sampling of the next token."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ..layer import RevDEQ
from .base import outside
from .blocks import Block, Past
from .config import whole


class Model(Protocol):
    """What ``Text`` needs from a language model."""

    equilibrium: RevDEQ

    @property
    def cell(self) -> Block:
        """The cell of the equilibrium layer."""
        ...

    def embed(self, tokens: Tensor, first: int = 0) -> tuple[Tensor, Tensor | None]:
        """x for tokens at the positions from `first` on, and their rotation."""
        ...

    def logits(self, z: Tensor) -> Tensor:
        """Logits of an equilibrium."""
        ...


class Text:
    """A growing text at its equilibrium, of which at most the last `context` tokens are read."""

    def __init__(self, model: Model, context: int, warm_start: bool) -> None:
        self.model, self.context, self.warm_start = model, context, warm_start
        self.past: Past | None = None  # of the tokens read, if they reached their equilibrium
        self.length = 0

    def read(self, tokens: Tensor) -> Tensor:
        """Logits (batch, vocab_size) of the next token, after those read before and these."""
        model = self.model
        length = tokens.shape[1]
        if self.past is None or length != self.length + 1 or length > self.context:
            self.past, first = None, 0
            tokens = tokens[:, -self.context :]
        else:
            tokens, first = tokens[:, -1:], self.length
        x, rotation = model.embed(tokens, first)
        # From zeros: the previous token's equilibrium is another token's, and further away.
        z = model.equilibrium(x, rotation, self.past)
        self._keep(z, x, rotation)
        self.length = length
        return model.logits(z[:, -1:])[:, 0]

    def _keep(self, z: Tensor, x: Tensor, rotation: Tensor | None) -> None:
        stats = self.model.equilibrium.stats
        if not self.warm_start or stats is None or not stats.converged:
            self.past = None
            return
        new = self.model.cell.keys_values(z, x, rotation)
        parts = [new] if self.past is None else [self.past, new]
        keys, values = (torch.cat(part, 2) for part in zip(*parts, strict=True))
        self.past = keys, values


def sample(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw a token for each row of logits (batch, vocab_size); int64 (batch, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        shares = ordered.softmax(-1)
        before = shares.cumsum(-1) - shares  # 0 for the most probable, which always stays
        ordered = ordered.masked_fill(before >= top_p, -math.inf)
        logits = torch.empty_like(logits).scatter_(-1, order, ordered)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)


def check_generation(
    tokens: Tensor, vocab_size: int, new_tokens: Any, temperature: Any, top_k: Any, top_p: Any
) -> None:
    """ValueError for invalid arguments of ``generate``; reads the tokens from the device."""
    whole("new_tokens", new_tokens, 0)
    said = outside(tokens, vocab_size)
    if said is not None:
        raise ValueError(said)
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature: expected a number of at least 0, got {temperature!r}; 0 takes the most "
            "probable token"
        )
    if top_k is not None:
        whole("top_k", top_k)
        if top_k > vocab_size:
            raise ValueError(
                f"top_k: expected at most vocab_size={vocab_size}, got {top_k}; None is all"
            )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(
            f"top_p: expected a number in (0, 1], got {top_p!r}; None draws among all tokens"
        )
