"""Helpers shared by the tests of the models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torch_revdeq.models import LanguageConfig, LanguageModel


def tiny(block: str = "modern", **changes: Any) -> LanguageConfig:
    """A language model of 11 tokens."""
    sizes = {"vocab_size": 11, "width": 16, "heads": 2, "context": 12, "steps": 3}
    return LanguageConfig(**{**sizes, "block": block, **changes})


def model_of(config: LanguageConfig, seed: int = 0, **options: Any) -> LanguageModel:
    """The model, with the same weights in every call."""
    torch.manual_seed(seed)
    return LanguageModel(config, **options)


def text(batch: int = 2, time: int = 8, seed: int = 1) -> Tensor:
    """Input tokens."""
    return torch.randint(11, (batch, time), generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The gradients of all parameters, each of which must have one."""
    model.zero_grad()
    loss().backward()
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Assert that the gradients agree bit for bit, and that there are any."""
    assert got.keys() == want.keys()
    for name, grad in want.items():
        assert torch.equal(got[name], grad), name
        assert grad.count_nonzero() > 0, name
