"""The maps f(z, x) that are solved: an MLP and a transformer block, with their tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Of the MLP: width and rows. Of the block: dim, heads, sequence and batch."""

    width: int = 512
    rows: int = 512
    dim: int = 128
    heads: int = 4
    sequence: int = 64
    batch: int = 8


FULL = Sizes()
# The error does not depend on the batch; a small one leaves time for many depths.
ERROR = Sizes(batch=2)
QUICK = Sizes(width=64, rows=64, dim=32, sequence=16, batch=2)


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


@dataclass(frozen=True)
class Model:
    """A map, where its solve begins, its input, and the gradient that arrives at its solution."""

    name: str
    f: nn.Module
    z0: Tensor
    x: Tensor
    cotangent: Tensor

    @property
    def parameters(self) -> list[Tensor]:
        """What the gradient is taken with respect to."""
        return list(self.f.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that f computes in."""
        return self.z0.dtype

    def to(self, dtype: torch.dtype) -> Model:
        """The same numbers in another dtype, rounded where it is a lower one."""
        f = copy.deepcopy(self.f).to(dtype)
        tensors = {name: getattr(self, name).to(dtype) for name in ("z0", "x", "cotangent")}
        return replace(self, f=f, **tensors)


def mlp(sizes: Sizes) -> tuple[nn.Module, tuple[int, ...]]:
    """The MLP and the shape of its state."""
    return MLP(sizes.width), (sizes.rows, sizes.width)


def block(sizes: Sizes) -> tuple[nn.Module, tuple[int, ...]]:
    """The transformer block and the shape of its state."""
    return Block(sizes.dim, sizes.heads), (sizes.batch, sizes.sequence, sizes.dim)


MODELS: dict[str, Callable[[Sizes], tuple[nn.Module, tuple[int, ...]]]] = {
    "mlp": mlp,
    "block": block,
}


def make(name: str, sizes: Sizes, device: torch.device) -> Model:
    """The same random numbers on every device and in every run; z0 is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        f, shape = MODELS[name](sizes)
        x, cotangent = torch.randn(shape), torch.randn(shape)
    zero = torch.zeros(shape, device=device)
    return Model(name, f.to(device), zero, x.to(device), cotangent.to(device))
