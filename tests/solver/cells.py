"""f for the solver's tests: small cells of common kinds."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Two layers with input injection."""

    def __init__(self, d: int = 16, *, p: float = 0.0, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.a = nn.Linear(d, 2 * d, dtype=dtype)
        self.b = nn.Linear(2 * d, d, dtype=dtype)
        self.drop = nn.Dropout(p)

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.a(self.drop(z)))
        return torch.tanh(self.b(h) if x is None else self.b(h) + x)


class TwoMaps(nn.Module):
    """A linear map of the state plus a linear map of the input."""

    def __init__(self, d: int = 16, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.of_z, self.of_x = (nn.Linear(d, d, dtype=dtype) for _ in range(2))

    def forward(self, z: Tensor, x: Tensor) -> Any:
        return torch.tanh(self.of_z(z) + self.of_x(x))


class Normed(MLP):
    """An MLP with BatchNorm, which counts its batches."""

    def __init__(self, d: int = 16, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(d, dtype=dtype)
        self.norm = nn.BatchNorm1d(d, dtype=dtype)

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        return self.norm(super().forward(z, x))


class Energy(nn.Module):
    """A gradient step on an energy: f itself computes a gradient."""

    def __init__(self, d: int = 16, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        maps = (nn.Linear(d, 8, dtype=dtype), nn.Linear(8, 1, bias=False, dtype=dtype))
        self.e = nn.Sequential(maps[0], nn.Softplus(), maps[1])

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        with torch.enable_grad():
            if not z.requires_grad:
                z = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.e(z + x).sum(), z, create_graph=True)
        return torch.tanh(z - slope)


class Block(nn.Module):
    """A pre-norm transformer block; the input is added to z before the attention."""

    def __init__(self, d: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.heads = heads

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        z = z if x is None else z + x
        q, k, v = self.qkv(self.n1(z)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0)
        heads = F.scaled_dot_product_attention(*(t.transpose(-3, -2) for t in (q, k, v)))
        z = z + self.out(heads.transpose(-3, -2).flatten(-2))
        return z + self.down(F.gelu(self.up(self.n2(z))))


class Conv(nn.Module):
    """Convolutions and group norms, as in the paper's image models."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.c1, self.c2 = (nn.Conv2d(c, c, 3, padding=1) for _ in range(2))
        self.g1, self.g2, self.g3 = (nn.GroupNorm(2, c) for _ in range(3))

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        h = self.g1(F.relu(self.c1(z)))
        h = self.c2(h) if x is None else x + self.c2(h)
        return self.g3(F.relu(z + self.g2(h)))


class Tied(nn.Module):
    """One weight used three times, and the input twice."""

    def __init__(self, d: int = 16, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.w = nn.Linear(d, d, dtype=dtype)

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.w(z))
        h = h if x is None else h * x
        h = torch.tanh(self.w(h)) + F.linear(h, self.w.weight)
        return torch.tanh(h if x is None else h + x)


CELLS = {
    "mlp": (MLP, (6, 16)),
    "block": (Block, (2, 5, 16)),
    "conv": (Conv, (2, 8, 5, 5)),
    "tied": (Tied, (6, 16)),
}
"""By name: the cell, and the shape of its state."""
DRAWING = {"dropout": (partial(MLP, p=0.3), (6, 16))}
"""The cells that draw random numbers."""


def cell_and_input(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A cell with fixed weights, and an input that requires grad."""
    torch.manual_seed(seed)
    make, shape = {**CELLS, **DRAWING}[name]
    return make(), torch.randn(shape, requires_grad=True)
