"""The cell's ops under torch.func.vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def one_by_one(op: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A batching rule for ``register_vmap``: one call per sample, with the bits of a loop.

    A single call for the rows of all samples would give different bits: a matrix product depends on
    the number of rows, and an exact state that leaves its range in one row makes other rows NaN.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            raise ValueError(f"{name}: expected at least one sample in torch.func.vmap, got none")

        def of(sample: int) -> list[Any]:
            batched = zip(args, in_dims, strict=True)
            return [arg if dim is None else arg.select(dim, sample) for arg, dim in batched]

        each = [op(*of(sample)) for sample in range(info.batch_size)]
        outputs = tuple(map(torch.stack, zip(*each, strict=True)))
        return outputs, (0,) * len(outputs)

    return rule
