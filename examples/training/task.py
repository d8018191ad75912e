"""What the loop knows of a task: samples by their number, and what its results are called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""What the model reads, and the class that each of its rows of logits should name, int64."""


class Task(Protocol):
    """Inputs and targets to train on, and others to be judged by."""

    unit: str
    """What throughput is counted in."""
    units: int
    """How many of them a sample holds."""
    size: int
    """Samples to train on."""
    held_out: int
    """Samples that are not trained on."""
    identity: str
    """A digest of the data: a run that is resumed needs the same."""

    def training(self, indices: Tensor, draws: Tensor) -> Batch:
        """Samples to train on. `draws`: three numbers in [0, 1) for each, to vary it by."""
        ...

    def evaluation(self, indices: Tensor) -> Batch:
        """Held-out samples, as they are."""
        ...

    def figures(self, loss: float, accuracy: float) -> dict[str, float]:
        """A mean cross entropy in nats, and a share of hits, as the task names them."""
        ...


def digest(tensors: Iterable[Tensor]) -> str:
    """A short digest of tensors of integers."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()[:16]
