"""The maps f(z, x) that are solved: an MLP, a transformer block, the paper's blocks, a tiny one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of every GroupNorm. The paper does not say how many.
GROUPS = 8


class MLP(nn.Module):
    """Four linear layers, with x added to what the first one reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        for layer in self.layers:
            # torch's own start shrinks so much that f would hardly depend on z.
            nn.init.xavier_normal_(layer.weight)  # type: ignore[arg-type]

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The map."""
        h = z + x
        for index, layer in enumerate(self.layers):
            h = layer(h if index == 0 else F.gelu(h))
        return h


class Block(nn.Module):
    """A pre-LN transformer block of z + x, normalised at its end so that z stays bounded."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.end = nn.LayerNorm(dim)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The map."""
        h = z + x
        h = h + self.attention(self.before_attention(h))
        h = h + self.down(F.gelu(self.up(self.before_mlp(h))))
        return self.end(h)

    def attention(self, h: Tensor) -> Tensor:
        """Self-attention over the sequence."""
        batch, sequence, dim = h.shape
        parts = self.qkv(h).view(batch, sequence, 3, self.heads, dim // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, sequence, dim))


class Language(nn.Module):
    """The paper's language block: z <- z + attention(LN(z + x)), z <- z + MLP(LN z).

    Attention is causal and projects twice: q, k and v once before it, and again inside of it, as
    the authors' code has it. 31 dim^2 numbers in its weights.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.outer, self.qkv = nn.Linear(dim, 3 * dim), nn.ModuleList()
        self.qkv.extend(nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)
        self.up, self.middle = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The map."""
        h = z + self.attention(self.before_attention(z + x))
        up = F.gelu(self.up(self.before_mlp(h)))
        return h + self.down(F.gelu(self.middle(up)))

    def attention(self, h: Tensor) -> Tensor:
        """Causal self-attention over the sequence."""
        batch, sequence, dim = h.shape
        outer = self.outer(h).chunk(3, dim=-1)
        q, k, v = (
            inner(one).view(batch, sequence, self.heads, -1).transpose(1, 2)
            for inner, one in zip(self.qkv, outer, strict=True)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, sequence, dim))


class Vision(nn.Module):
    """The paper's vision block: GN(relu(z + GN(x + conv2(relu(GN(conv1 z)))))), of width 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)
        )
        self.groups = min(GROUPS, channels)
        self.norms = nn.ModuleList(nn.GroupNorm(self.groups, channels) for _ in range(3))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The map."""
        first, second = self.convolutions
        inner, middle, outer = self.norms
        h = second(F.relu(inner(first(z))))
        return outer(F.relu(z + middle(x + h)))


class Tiny(nn.Module):
    """So little that the time of a half step is that of asking for it: tanh(w z + x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) - 0.5)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The map."""
        return torch.tanh(self.weight * z + x)
