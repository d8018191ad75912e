"""A state as a matrix: a row for each problem that is solved by itself, or one row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def as_rows(leaves: Sequence[Tensor], batched: bool, solver: str) -> Tensor:
    """All leaves side by side, [rows, numbers], in float64 if one of them is, else in float32.

    `batched`: a row for each index of the first dimension, which all leaves must share: ValueError
    that names the `solver`. Otherwise one row.
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
    """The leaves that ``as_rows`` put together, in the shapes and dtypes of `like`."""
    parts = rows.split([leaf.numel() // max(len(rows), 1) for leaf in like], 1)
    rows_of = zip(parts, like, strict=True)
    return [part.reshape(leaf.shape).to(leaf.dtype) for part, leaf in rows_of]
