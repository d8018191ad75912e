"""A map with its tensors, at the sizes that a run takes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from bench.core.session import Tier
from bench.solver.maps import MLP, Block, Language, Tiny, Vision
from torch_revdeq import LinearCell


@dataclass(frozen=True)
class Text:
    """Of a block that reads tokens."""

    dim: int
    heads: int
    sequence: int
    batch: int


@dataclass(frozen=True)
class Images:
    """Of a block that reads square images."""

    channels: int
    side: int
    batch: int


@dataclass(frozen=True)
class Sizes:
    """Width and rows of the MLP, text of both blocks, images, the width of the tiny map.

    `cell` are the features of the linear cell, which has as many rows as the MLP.
    """

    width: int = 512
    rows: int = 512
    block: Text = field(default_factory=lambda: Text(128, 4, 64, 8))
    language: Text = field(default_factory=lambda: Text(192, 3, 64, 2))
    vision: Images = field(default_factory=lambda: Images(64, 16, 4))
    tiny: int = 16
    cell: int = 256

    def with_batch(self, batch: int) -> Sizes:
        """The same maps on `batch` samples: rows of the MLP, sequences, images."""
        parts = {name: replace(getattr(self, name), batch=batch) for name in BATCHED}
        return replace(self, rows=batch, **parts)


BATCHED = ("block", "language", "vision")
CPU = Sizes()
"""On a CPU the paper's blocks are smaller: 128 tokens, 3 heads of 64; 64 channels of 16 x 16."""
GPU = Sizes(
    width=2048,
    rows=4096,
    block=Text(512, 8, 512, 16),
    language=Text(768, 12, 448, 32),
    vision=Images(128, 32, 64),
    cell=128,
)
"""On a GPU they are of the paper's sizes; of its vision model that of the first stage."""
QUICK = Sizes(64, 64, Text(32, 4, 16, 2), Text(24, 3, 8, 2), Images(8, 8, 2), tiny=8, cell=32)


def sizes_of(device: torch.device, tier: Tier) -> Sizes:
    """Those that a run takes."""
    if tier == "quick":
        return QUICK
    return GPU if device.type == "cuda" else CPU


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


Made = tuple[nn.Module, tuple[int, ...]]


def _of_text(make: Callable[[int, int], nn.Module], text: Text) -> Made:
    return make(text.dim, text.heads), (text.batch, text.sequence, text.dim)


def _of_images(images: Images) -> Made:
    side, channels = images.side, images.channels
    return Vision(channels), (images.batch, channels, side, side)


MODELS: dict[str, Callable[[Sizes], Made]] = {
    "mlp": lambda sizes: (MLP(sizes.width), (sizes.rows, sizes.width)),
    "block": lambda sizes: _of_text(Block, sizes.block),
    "language": lambda sizes: _of_text(Language, sizes.language),
    "vision": lambda sizes: _of_images(sizes.vision),
    "cell": lambda sizes: (LinearCell(sizes.cell, sizes.cell), (sizes.rows, sizes.cell)),
    "tiny": lambda sizes: (Tiny(sizes.tiny), (TINY_ROWS, sizes.tiny)),
}
"""By name: the map, and the shape of its state."""


TINY_ROWS = 8


def make(name: str, sizes: Sizes, device: torch.device) -> Model:
    """The same random numbers on every device and in every run; z0 is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        f, shape = MODELS[name](sizes)
        x, cotangent = torch.randn(shape), torch.randn(shape)
    zero = torch.zeros(shape, device=device)
    return Model(name, f.to(device), zero, x.to(device), cotangent.to(device))
