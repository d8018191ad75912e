"""A state as a matrix: one row per problem that is solved separately, or a single row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def as_rows(leaves: Sequence[Tensor], batched: bool, solver: str) -> Tensor:
    """All leaves concatenated, [rows, numbers], in float64 if any leaf is, else in float32.

    `batched`: one row per index of the first dimension, which all leaves must share; otherwise
    ValueError that names the `solver`. Not batched: a single row.
    """
    wide = torch.float64 if any(t.dtype == torch.float64 for t in leaves) else torch.float32
    rows = 1
    if batched:
        if not all(leaf.dim() for leaf in leaves) or len({len(leaf) for leaf in leaves}) > 1:
            raise ValueError(
                f"z0: expected leaves with one first dimension for {solver}(batched=True), got "
                f"{[tuple(leaf.shape) for leaf in leaves]}; choose batched=False"
            )
        rows = len(leaves[0])
    parts = [leaf.to(wide).reshape(rows, leaf.numel() // max(rows, 1)) for leaf in leaves]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def as_leaves(rows: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of ``as_rows``: leaves in the shapes and dtypes of `like`."""
    parts = rows.split([leaf.numel() // max(len(rows), 1) for leaf in like], 1)
    rows_of = zip(parts, like, strict=True)
    return [part.reshape(leaf.shape).to(leaf.dtype) for part, leaf in rows_of]
