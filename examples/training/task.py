"""The interface of a task: samples by index, and the names of its figures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Inputs of the model, and the target class of each row of logits, int64."""


class Task(Protocol):
    """Inputs and targets for training, and held-out ones for evaluation."""

    unit: str
    """The unit of throughput."""
    units: int
    """Units per sample."""
    size: int
    """Number of training samples."""
    held_out: int
    """Number of held-out samples."""
    identity: str
    """A digest of the data; a resumed run must have the same."""

    def training(self, indices: Tensor, draws: Tensor) -> Batch:
        """Training samples. `draws`: three random numbers in [0, 1) per sample, to augment it."""
        ...

    def evaluation(self, indices: Tensor) -> Batch:
        """Held-out samples, without augmentation."""
        ...

    def figures(self, loss: float, accuracy: float) -> dict[str, float]:
        """The figures to report, from the mean cross entropy in nats and the accuracy."""
        ...


def digest(tensors: Iterable[Tensor]) -> str:
    """A short digest of integer tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()[:16]
