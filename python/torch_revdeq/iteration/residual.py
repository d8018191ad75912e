"""The relative residual norm(z - f(z)) / (1e-5 + norm(f(z)))."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels.dtypes import EPSILON

from .halting import by_sample

Masks: TypeAlias = Sequence[Tensor | None]
"""For each leaf the positions that count, over its leading dimensions; None: all."""

Norms: TypeAlias = Sequence[Tensor | None]
"""For each leaf norm(z - f) and norm(f), in float64, stacked in the last dimension; None for a leaf
without elements."""


def relative_residual(
    z: Sequence[Tensor], f: Sequence[Tensor], masks: Masks | None = None
) -> Tensor:
    """The largest over the leaves of norm(z - f) / (1e-5 + norm(f)), in float64, on the device."""
    return largest(norms_of(z, f, masks), z[0].device)


def norms_of(
    z: Sequence[Tensor], f: Sequence[Tensor], masks: Masks | None = None
) -> list[Tensor | None]:
    """norm(z - f) and norm(f) of each leaf."""
    if masks is not None:
        z, f = _masked(z, masks), _masked(f, masks)
    rows = zip(z, f, strict=True)
    return [rk.residual(*_readable(a, b)) if a.numel() else None for a, b in rows]


def largest(norms: Norms, device: torch.device) -> Tensor:
    """The largest ratio over the leaves; NaN stays NaN, and does not stop a solve."""
    ratios = [_ratio(row.select(-1, 0), row.select(-1, 1)) for row in norms if row is not None]
    if not ratios:
        return torch.zeros((), dtype=torch.float64, device=device)
    return ratios[0] if len(ratios) == 1 else torch.stack(ratios).amax(0)


def nothing_finite(*states: Sequence[Tensor]) -> Tensor:
    """Whether no element of these states is finite: a 0-dim bool tensor on their device."""
    finite = [leaf.detach().isfinite().any() for state in states for leaf in state]
    return ~torch.stack(finite).any()


def _masked(leaves: Sequence[Tensor], masks: Masks) -> list[Tensor]:
    """The leaves with zeros where nothing counts, which do not affect the norms."""
    rows = zip(leaves, masks, strict=True)
    return [x if m is None else torch.where(by_sample(m, x), x.detach(), 0.0) for x, m in rows]


def sample_residuals(
    z: Sequence[Tensor], f: Sequence[Tensor], dims: int = 1, masks: Masks | None = None
) -> Tensor:
    """The same for every sample, an index of the first `dims` dimensions, separately.

    Bitwise independent of strides.
    """
    if masks is not None:
        z, f = _masked(z, masks), _masked(f, masks)
    norm = partial(torch.linalg.vector_norm, dim=1, dtype=torch.float64)
    rows = [(_by_row(a, dims), _by_row(b, dims)) for a, b in zip(z, f, strict=True)]
    of_samples = torch.stack([_ratio(norm(a - b), norm(b)) for a, b in rows]).amax(0)
    return of_samples.view(z[0].shape[:dims])


def _by_row(leaf: Tensor, dims: int) -> Tensor:
    wide = torch.promote_types(leaf.dtype, torch.float32)
    rows = leaf.detach().to(wide).contiguous().unsqueeze(-1).flatten(dims)
    return rows.flatten(0, dims - 1)


def _ratio(distance: Tensor, size: Tensor) -> Tensor:
    return distance / (EPSILON + size)


def _readable(z: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """z in a dtype that ``residual`` supports together with f's."""
    z, f = z.detach(), f.detach()
    if z.dtype == f.dtype or z.dtype in (torch.float32, torch.float64):
        if f.dtype == torch.float64 and z.dtype != torch.float64:
            return z.double(), f
        return z, f
    return z.to(torch.promote_types(f.dtype, torch.float32)), f
