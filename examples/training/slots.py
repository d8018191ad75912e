"""The puzzles of a batch that is carried from update to update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_revdeq.models import Carry, RecursiveModel

from .checkpoint import Tensors


@dataclass
class Slots:
    """A batch of puzzles, each at its own number of passes.

    Attributes:
        tokens: the puzzles, int64 (batch, cells).
        answers: their solutions.
        passes: the number that each has taken, int64 (batch,).
        carry: the states after the last pass.
    """

    tokens: Tensor
    answers: Tensor
    passes: Tensor
    carry: Carry

    @classmethod
    def empty(cls, model: RecursiveModel, batch: int, device: torch.device) -> Slots:
        """Empty slots for `batch` puzzles of this model."""
        shape = (batch, model.config.length)
        tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        return cls(tokens, tokens, tokens[:, 0], model.start(batch))

    def tensors(self) -> Tensors:
        """All tensors by name, on the CPU."""
        (y_answer, y_latent), (z_answer, z_latent) = self.carry
        found = {
            "tokens": self.tokens, "answers": self.answers, "passes": self.passes,
            "y.answer": y_answer, "y.latent": y_latent, "z.answer": z_answer, "z.latent": z_latent,
        }  # fmt: skip
        return {name: value.cpu() for name, value in found.items()}

    def load(self, tensors: Tensors) -> None:
        """Restore the result of ``tensors``."""
        at = {name: value.to(self.tokens.device) for name, value in tensors.items()}
        self.tokens, self.answers, self.passes = at["tokens"], at["answers"], at["passes"]
        y, z = ((at[f"{half}.answer"], at[f"{half}.latent"]) for half in ("y", "z"))
        self.carry = Carry(y, z)
