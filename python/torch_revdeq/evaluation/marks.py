"""Marks of values: enough numbers of a tensor to tell whether f computed it again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SAMPLE = 64
"""Numbers that are remembered of each tensor, spread over it evenly."""

NOISE = 1e-3
"""How far a number may be from what it was, as a share of the largest, where nothing is exact: more
than an operation that is not deterministic makes, and less than other random numbers."""


def mark_of(values: Sequence[Tensor]) -> Tensor:
    """Some numbers of each of the tensors, float64, on their device."""
    parts = [_sample(value.detach()) for value in values if value.layout == torch.strided]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def _sample(value: Tensor) -> Tensor:
    flat = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    flat = flat.reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE].to(torch.float64)


def differs(then: Tensor, now: Tensor, noise: float) -> Tensor:
    """Whether the marks do, by more than `noise` of the largest number: bool, no dimensions."""
    if not then.numel():
        return torch.zeros((), dtype=torch.bool, device=then.device)
    near = (then - now).abs() <= noise * then.abs().nan_to_num(posinf=0.0).max()
    same = (then == now) | (then.isnan() & now.isnan())
    return ~(near | same).all()
