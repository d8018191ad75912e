"""The memory of a training step, by the allocator's count: what tests of memory share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.core.memory import peak_bytes
from torch_revdeq import solve

STATE, HIDDEN = 256 * 64 * 4, 256 * 512 * 4
"""Bytes of a state, and of what the cell keeps of one evaluation beside it."""


def model() -> tuple[nn.Sequential, Tensor]:
    """A cell whose activations are many times its state."""
    torch.manual_seed(0)
    f = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 64), nn.Tanh())
    return f, torch.zeros(256, 64)


def peak(steps: int, **options: Any) -> int:
    """Of a step of training, whose loss is of z and of what was saved."""
    f, z0 = model()

    def train() -> None:
        solution = solve(f, z0, max_steps=steps, **options)
        torch.stack([t.sum() for t in (solution.z, *solution.saved)]).sum().backward()

    train()  # the gradients' memory stays
    return peak_bytes(train, torch.device("cpu"))
