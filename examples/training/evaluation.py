"""Evaluation on held-out samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .parallel import Place
from .task import Task


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    place: Place,
    *,
    batch: int,
    samples: int | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """The mean cross entropy in nats, as "held_out_loss", and the task's own figures.

    Args:
        model: returns logits (..., classes).
        task: with the held-out samples.
        place: this process. Each evaluates its part of the samples, and all get the result.
        batch: samples per forward pass.
        samples: how many to use, evenly spaced; None: all.
        dtype: of autocast, if any.
    """
    count = min(samples or task.held_out, task.held_out)
    chosen = torch.arange(count) * task.held_out // count
    sums = torch.zeros(3, dtype=torch.float64, device=place.device)
    model.eval()
    # A sharded model communicates, so all processes call it equally often: at the end, some
    # process samples again that are not counted.
    for first in range(0, count, batch * place.world):
        mine = torch.arange(batch) + first + place.rank * batch
        counts = (mine < count).to(place.device)
        inputs, targets = task.evaluation(chosen[mine.clamp(max=count - 1)])
        inputs, targets = inputs.to(place.device), targets.to(place.device)
        with torch.autocast(place.device.type, dtype, enabled=dtype is not None):
            logits = model(inputs)
        sums += _sums(logits, targets, counts)
    model.train()
    loss, hits, rows = place.total(sums).tolist()
    return {"held_out_loss": loss / rows, **task.figures(loss / rows, hits / rows)}


def _sums(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Cross entropy, hits and rows of the samples that count."""
    logits, targets = logits[counts].flatten(0, -2), targets[counts].flatten()
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    hits = (logits.argmax(1) == targets).double().sum()
    rows = torch.full_like(hits, len(targets))
    return torch.stack([losses.double().sum(), hits, rows])
