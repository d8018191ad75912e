"""The largest absolute value of a tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def magnitude(leaf: Tensor) -> Tensor:
    """The largest absolute value of a nonempty floating-point tensor; NaN if it contains one.

    A 0-dim tensor in its dtype. torch's infinity norm is one launch on a GPU; on a CPU it takes
    twelve times as long as the two reductions.
    """
    leaf = leaf.detach()
    if leaf.is_cpu and type(leaf) is Tensor:
        return torch.maximum(leaf.amax(), leaf.amin().neg())
    return torch.linalg.vector_norm(leaf, math.inf)
