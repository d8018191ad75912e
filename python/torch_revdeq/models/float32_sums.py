"""Layers with float32 sums where torch, on a CPU, sums gradients in 16 bits.

``nn.LayerNorm`` sums the gradients of its weight and bias over all rows in the dtype of its input,
and ``nn.Embedding`` those of a token over its occurrences in the dtype of the weight. In bfloat16
such a sum stops growing at 256 summands of one size: over 8192 rows a bias's gradient is off by
70 %, without a warning. On a GPU torch sums in float32, so there these are torch's own layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _summed_in_16_bits(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float16)


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` that computes 16-bit inputs on a CPU in float32; same output dtype."""

    def forward(self, input: Tensor) -> Tensor:
        """To the same shape and dtype."""
        if not _summed_in_16_bits(input):
            return super().forward(input)
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        wide = F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps)
        return wide.to(input.dtype)


class Embedding(nn.Embedding):
    """``nn.Embedding`` that reads a 16-bit weight on a CPU through a temporary float32 copy.

    The values are the same; the gradient is summed in float32 and rounded once.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The rows of these tokens, (..., embedding_dim)."""
        if not (_summed_in_16_bits(self.weight) and torch.is_grad_enabled()):
            return super().forward(input)
        return F.embedding(input, self.weight.float(), self.padding_idx).to(self.weight.dtype)
