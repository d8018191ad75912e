"""Helpers shared by the tests of the recursive reasoning model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models import modelling
from torch_revdeq.models import Carry, RecursiveConfig, RecursiveModel

BOTH = pytest.mark.parametrize("mixing", ["mlp", "attention"])


def tiny(mixing: str = "mlp", **changes: Any) -> RecursiveConfig:
    """A model of 5 tokens and 6 positions."""
    sizes: dict[str, Any] = {"vocab_size": 5, "length": 6, "width": 16, "heads": 2, "steps": 3}
    return RecursiveConfig(**{**sizes, "latent_steps": 2, "mixing": mixing, **changes})


def model_of(config: RecursiveConfig, **options: Any) -> RecursiveModel:
    """The model, with fixed random weights and a halting head that distinguishes samples."""
    torch.manual_seed(0)
    model = RecursiveModel(config, **options)
    torch.nn.init.normal_(model.halt.weight, std=0.1)
    return model


def questions(batch: int = 3, seed: int = 1) -> Tensor:
    return torch.randint(5, (batch, 6), generator=torch.Generator().manual_seed(seed))


def loss_of(output: Any, tokens: Tensor) -> Tensor:
    """The loss of a pass, where the answer is the reversed question."""
    logits = output.logits.flatten(0, 1).float()
    return F.cross_entropy(logits, tokens.flip(1).flatten()) + output.halt.float().mean()


def gradients(model: RecursiveModel, run: Any, tokens: Tensor) -> dict[str, Tensor]:
    """The summed gradients of two passes, each with its own loss and backward pass."""

    def losses() -> Tensor:
        first = run(tokens)
        loss_of(first, tokens).backward()
        return loss_of(run(tokens, first.carry), tokens)

    return modelling.gradients(model, losses)


def leaves(carry: Carry) -> tuple[Tensor, ...]:
    return (*carry.y, *carry.z)
