"""The cells f(z, x) of the language models: transformer blocks that read x in every step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .float32_sums import LayerNorm

Past = tuple[Tensor, Tensor]
"""Keys and values of earlier tokens at their equilibrium, each (batch, heads, time, head)."""


class Attention(nn.Module):
    """Attention over (batch, time, width); subclasses define the projections.

    Args:
        width: features per token.
        heads: number of heads, which share the features equally.
        causal: whether a token attends only to itself and earlier tokens.
    """

    out: nn.Linear

    def __init__(self, width: int, heads: int, *, causal: bool = True) -> None:
        super().__init__()
        self.width, self.heads, self.causal = width, heads, causal

    def project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each in the shape of h."""
        raise NotImplementedError

    def projected(self, h: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The same split into heads, (batch, heads, time, head), queries and keys rotated."""
        parts = self.project(h)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if rotation is not None:
            q, k = rotated(q, rotation), rotated(k, rotation)
        return q, k, v

    def forward(self, h: Tensor, rotation: Tensor | None, past: Past | None = None) -> Tensor:
        """The attention output for every token. With `past`, h is one token."""
        q, k, v = self.projected(h, rotation)
        if past is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
        gathered = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal and past is None)
        return self.out(gathered.transpose(1, 2).flatten(2))


def rotations(first: int, time: int, head: int, like: Tensor) -> Tensor:
    """Cosines and sines of rotary positions, (2, time, head / 2), in float32 or wider.

    Computed where they are used, not kept in a buffer: in a model built on the meta device a buffer
    would contain uninitialized memory. Source: arXiv 2104.09864.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    at = torch.arange(first, first + time, device=like.device, dtype=wide)
    powers = torch.arange(0, head, 2, device=like.device, dtype=wide) / head
    angles = at[:, None] * 10000.0**-powers
    return torch.stack((angles.cos(), angles.sin()))


def rotated(heads: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the feature pairs (i, i + head / 2) of each token by the angles of its position."""
    cos, sin = rotation
    a, b = heads.to(rotation.dtype).chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(heads.dtype)


class Block(nn.Module):
    """A transformer block as f(z, x), on (batch, time, width)."""

    norm1: nn.Module
    attention: Attention

    def forward(
        self, z: Tensor, x: Tensor, rotation: Tensor | None = None, past: Past | None = None
    ) -> Tensor:
        """The next state. `past`: what comes before the one token of z and x."""
        raise NotImplementedError

    def keys_values(self, z: Tensor, x: Tensor, rotation: Tensor | None) -> Past:
        """The keys and values that later tokens read of these tokens, with equilibrium z."""
        _, k, v = self.attention.projected(self.norm1(z + x), rotation)
        return k, v


class PaperAttention(Attention):
    """Attention that projects twice, as in the paper's experiments.

    Queries, keys and values are linear maps of h, followed by the projections of a multi-head
    attention without biases.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.outer_q, self.outer_k, self.outer_v = (nn.Linear(width, width) for _ in range(3))
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each projected twice."""
        return self.q(self.outer_q(h)), self.k(self.outer_k(h)), self.v(self.outer_v(h))


class PaperBlock(Block):
    """z <- z + Attn(LN(z + x)); z <- z + MLP(LN(z)), with an MLP of two hidden layers.

    It adds to its input state, so it need not have a fixed point: the paper trains its first steps.
    Source: arXiv 2509.12917, the language experiment, and its authors' code, with PyTorch's default
    initialization and the tanh approximation of GELU.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.attention = PaperAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(approximate="tanh"),
            nn.Linear(hidden, hidden),
            nn.GELU(approximate="tanh"),
            nn.Linear(hidden, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, z: Tensor, x: Tensor, rotation: Tensor | None = None, past: Past | None = None
    ) -> Tensor:
        """The next state."""
        z = z + self.dropout(self.attention(self.norm1(z + x), rotation, past))
        return z + self.dropout(self.mlp(self.norm2(z)))


class ModernAttention(Attention):
    """Attention with one linear map for queries, keys and values, without biases."""

    def __init__(self, width: int, heads: int, *, causal: bool = True) -> None:
        super().__init__(width, heads, causal=causal)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def project(self, h: Tensor) -> tuple[Tensor, ...]:
        """One product for all three."""
        return self.qkv(h).chunk(3, -1)


class SwiGLU(nn.Module):
    """down(silu(gate h) * up h), without biases. Source: arXiv 2002.05202."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """To the same shape."""
        gate, up = self.gate_up(h).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class ModernBlock(Block):
    """h = z + x; h <- h + Attn(norm(h)); h <- h + SwiGLU(norm(h)); f = norm(h), all RMSNorm.

    The last norm makes it a contraction at initialization. If both branches were zero, f(z) =
    norm(z + x) would have the fixed point z = x for an x of unit mean square, where h = 2 x: the
    norm halves it, and halves differences too. The last maps of the branches are initialized with
    the small gain BRANCH_GAIN, to preserve this.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(width, eps=EPS) for _ in range(3))
        self.attention: ModernAttention = ModernAttention(width, heads)
        self.mlp = SwiGLU(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize: maps with unit gain, the last maps of the branches times BRANCH_GAIN."""
        maps = [(self.attention.qkv, 1.0), (self.attention.out, BRANCH_GAIN)]
        maps += [(self.mlp.gate_up, 1.0), (self.mlp.down, BRANCH_GAIN)]
        for linear, gain in maps:
            nn.init.normal_(linear.weight, std=gain * linear.in_features**-0.5)

    def forward(
        self, z: Tensor, x: Tensor, rotation: Tensor | None = None, past: Past | None = None
    ) -> Tensor:
        """The next state."""
        h = z + x
        h = h + self.dropout(self.attention(self.norm1(h), rotation, past))
        h = h + self.dropout(self.mlp(self.norm2(h)))
        return self.norm3(h)


EPS = 1e-6
"""Of every RMSNorm: small compared to the initial mean square of the embeddings, 4e-4."""

BRANCH_GAIN = 0.5
"""The initial gain of the branches' last maps: half the gain that preserves magnitudes."""

BLOCKS: dict[str, Any] = {"modern": ModernBlock, "paper": PaperBlock}
