"""Correctness is checked before timing: an implementation with wrong results gets no time."""

from __future__ import annotations

from typing import Any

import torch

from bench.core import timing
from bench.core.case import Case, Provider

# Odd and not small: whole vectors, whole blocks of digits, and a ragged end.
GATE_ELEMENTS = 4099


def refusal(case: Case, provider: Provider) -> str | None:
    """Why `provider` must not be timed, or None where its results are right.

    Any exception is a reason: it is printed, stored with the results and makes the run fail, while
    the other providers are still measured.
    """
    tensors: dict[str, Any] = case.make(min(case.elements, GATE_ELEMENTS))
    twin: dict[str, Any] = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        with provider.scope():
            returned = provider.bind(tensors)()
        expected = provider.expected(twin)()
        if not any(expected is tensor for tensor in twin.values()):
            tensors, twin = tensors | {"result": returned}, twin | {"result": expected}
        return difference(tensors, twin, provider.tolerance)
    except Exception as error:
        return timing.reason(error)


def difference(
    actual: dict[str, Any], expected: dict[str, torch.Tensor], tolerance: float
) -> str | None:
    """The first tensor that differs from what was expected, in words."""
    for name, wanted in expected.items():
        got = actual[name]
        if not isinstance(got, torch.Tensor):
            return f"{name}: expected a tensor, got {type(got).__name__}"
        if got.dtype != wanted.dtype or got.shape != wanted.shape:
            return (
                f"{name}: expected {wanted.dtype} {tuple(wanted.shape)}, "
                f"got {got.dtype} {tuple(got.shape)}"
            )
        wrong = ~_agree(got, wanted, tolerance)
        if wrong.any():
            first = int(wrong.flatten().nonzero()[0])
            return (
                f"{name}: {int(wrong.sum())} of {wrong.numel()} elements differ from the "
                f"reference, the first at {first}: expected {wanted.flatten()[first].item()}, "
                f"got {got.flatten()[first].item()}"
            )
    return None


def _agree(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> torch.Tensor:
    """Elementwise agreement. NaN agrees with NaN only: poison that the definition overwrites."""
    if not wanted.is_floating_point():
        return got == wanted
    exact = wanted.double()
    allowed = tolerance * torch.finfo(wanted.dtype).eps * exact.nan_to_num().abs().max()
    close = (got.double() - exact).abs() <= allowed
    return close | (got.isnan() & wanted.isnan())
