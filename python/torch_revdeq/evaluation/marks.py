"""Marks of values: enough elements of a tensor to tell whether f computed it again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SAMPLE = 64
"""Number of elements to remember of each tensor, spread evenly."""

NOISE = 1e-3
"""The difference allowed where values are not exact, relative to the largest: more than the noise
of a nondeterministic operation, and less than the effect of other random numbers."""


def mark_of(values: Sequence[Tensor]) -> Tensor:
    """Some elements of each tensor, float64, on their device."""
    parts = [_sample(value.detach()) for value in values if value.layout == torch.strided]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def _sample(value: Tensor) -> Tensor:
    flat = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    flat = flat.reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE].to(torch.float64)


def differs(then: Tensor, now: Tensor, noise: float) -> Tensor:
    """Whether marks differ by more than `noise` relative to the largest number: 0-dim bool."""
    if not then.numel():
        return torch.zeros((), dtype=torch.bool, device=then.device)
    near = (then - now).abs() <= noise * then.abs().nan_to_num(posinf=0.0).max()
    same = (then == now) | (then.isnan() & now.isnan())
    return ~(near | same).all()
