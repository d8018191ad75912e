"""Learning rate schedules."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from .config import Training

FACTOR, PATIENCE, ACCUMULATION, THRESHOLD = 0.5, 10, 200, 1e-4
"""Arguments of optax.contrib.reduce_on_plateau in the paper."""

LAST = 0.1
"""The final rate of the cosine schedule, relative to the peak rate."""


class Plateau:
    """Halves the rate when the mean loss of 200 updates has not fallen 10 times in a row."""

    def __init__(self, optimizer: Optimizer) -> None:
        # optax reduces at the tenth time, torch after it.
        options: Any = {"factor": FACTOR, "patience": PATIENCE - 1, "threshold": THRESHOLD}
        self.inner = ReduceLROnPlateau(optimizer, **options)
        self.total: Tensor | float = 0.0
        self.count = 0

    def step(self, loss: Tensor) -> None:
        """Call after an update. `loss`: the mean over all processes, so that all share a rate."""
        self.total, self.count = self.total + loss.double(), self.count + 1
        if self.count == ACCUMULATION:
            self.inner.step(float(self.total) / ACCUMULATION)
            self.total, self.count = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """The state, as JSON values."""
        inner = {k: self.inner.state_dict()[k] for k in ("best", "num_bad_epochs", "last_epoch")}
        return {"inner": inner, "total": float(self.total), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict``."""
        self.inner.load_state_dict(state["inner"])
        self.total, self.count = state["total"], state["count"]


class Curve:
    """A rate that depends only on the update."""

    def __init__(self, optimizer: Optimizer, training: Training) -> None:
        self.inner = LambdaLR(optimizer, lambda update: share(update, training))

    def step(self, loss: Tensor) -> None:
        """Call after an update."""
        self.inner.step()

    def state_dict(self) -> dict[str, Any]:
        """The state, as JSON values."""
        return {"last_epoch": self.inner.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict``."""
        self.inner.last_epoch = state["last_epoch"]


def share(update: int, training: Training) -> float:
    """The rate of the update after `update` others, relative to the peak rate."""
    if update < training.warmup:
        return (update + 1) / training.warmup
    if training.schedule == "constant":
        return 1.0
    span = max(1, training.updates - training.warmup)
    turn = math.pi * min(1.0, (update - training.warmup) / span)
    return LAST + (1 - LAST) * (1 + math.cos(turn)) / 2


def schedule_for(optimizer: Optimizer, training: Training) -> Plateau | Curve:
    """The schedule that the configuration names."""
    return Plateau(optimizer) if training.schedule == "plateau" else Curve(optimizer, training)
