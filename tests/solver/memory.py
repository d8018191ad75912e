"""The memory of a training step, as counted by the allocator; shared by tests of memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.core.memory import peak_bytes
from torch_revdeq import solve

STATE, HIDDEN = 256 * 64 * 4, 256 * 512 * 4
"""Bytes of a state, and of the activations that the cell saves per evaluation."""


def model() -> tuple[nn.Sequential, Tensor]:
    """A cell whose activations are many times larger than its state."""
    torch.manual_seed(0)
    f = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 64), nn.Tanh())
    return f, torch.zeros(256, 64)


def peak(steps: int, **options: Any) -> int:
    """The peak of a training step, whose loss depends on z and on the saved states."""
    f, z0 = model()

    def train() -> None:
        solution = solve(f, z0, max_steps=steps, **options)
        torch.stack([t.sum() for t in (solution.z, *solution.saved)]).sum().backward()

    train()  # keeps the gradients' memory
    return peak_bytes(train, torch.device("cpu"))
