"""The cell of the recursive reasoning models: one recursion over an answer and a latent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import EPS, ModernAttention, SwiGLU

State = tuple[Tensor, Tensor]
"""The answer and the latent, each (batch, length, width)."""


BRANCH_GAIN = 0.1
"""Initial gain of the last map of each branch; see ``PostNormBlock``."""


class Mix(nn.Module):
    """A layer that mixes the positions of h, (batch, length, width)."""

    @property
    def last(self) -> nn.Linear:
        """The last of its maps."""
        raise NotImplementedError

    def forward(self, h: Tensor, rotation: Tensor | None) -> Tensor:
        """To the same shape."""
        raise NotImplementedError


class MixingMLP(Mix):
    """A SwiGLU over the positions, the same for every feature; ignores the rotation."""

    def __init__(self, length: int, hidden: int) -> None:
        super().__init__()
        self.mlp = SwiGLU(length, hidden)

    @property
    def last(self) -> nn.Linear:
        """The last of its maps."""
        return self.mlp.down

    def forward(self, h: Tensor, rotation: Tensor | None) -> Tensor:
        """To the same shape."""
        return self.mlp(h.transpose(1, 2)).transpose(1, 2)


class MixingAttention(Mix):
    """Attention of every position to all positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = ModernAttention(width, heads, causal=False)

    @property
    def last(self) -> nn.Linear:
        """The last of its maps."""
        return self.attention.out

    def forward(self, h: Tensor, rotation: Tensor | None) -> Tensor:
        """To the same shape."""
        return self.attention(h, rotation)


class PostNormBlock(nn.Module):
    """h <- norm(h + mix(h)); h <- norm(h + SwiGLU(h)), on (batch, length, width).

    The norms have no weights, so the block's output has unit mean square at every position and no
    element above sqrt(width): a state of such numbers stays in the range of fixed point.

    The branches are initialized with the small gain BRANCH_GAIN. With unit gain, a net that mixes
    by an MLP expands: the gradient of 16 recursions is then over a million times that of two.
    """

    def __init__(self, mix: Mix, width: int, hidden: int) -> None:
        super().__init__()
        self.mix = mix
        self.mlp = SwiGLU(width, hidden)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize: maps with unit gain, the last maps of the branches times BRANCH_GAIN."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                gain = BRANCH_GAIN if module in (self.mix.last, self.mlp.down) else 1.0
                nn.init.trunc_normal_(module.weight, std=gain * module.in_features**-0.5)

    def forward(self, h: Tensor, rotation: Tensor | None) -> Tensor:
        """To the same shape."""
        h = unit(h + self.mix(h, rotation))
        return unit(h + self.mlp(h))


class Recursion(nn.Module):
    """f((answer, latent), x): updates the latent several times, then the answer once.

        latent <- net(latent + answer + x)        latent_steps times
        answer <- net(answer + latent)

    with one net for both. Source: arXiv 2510.04871.

    Args:
        net: the blocks, in order.
        latent_steps: updates of the latent per update of the answer.
    """

    def __init__(self, net: list[PostNormBlock], latent_steps: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(net)
        self.latent_steps = latent_steps

    def forward(self, state: State, x: Tensor, rotation: Tensor | None = None) -> State:
        """The next answer and latent.

        Args:
            state: the answer and the latent, each (batch, length, width).
            x: the question, (batch, length, width).
            rotation: rotary positions for attention; see ``blocks.rotations``.
        """
        answer, latent = state
        for _ in range(self.latent_steps):
            latent = self._through(latent + answer + x, rotation)
        return self._through(answer + latent, rotation), latent

    def _through(self, h: Tensor, rotation: Tensor | None) -> Tensor:
        for block in self.net:
            h = block(h, rotation)
        return h


def unit(h: Tensor) -> Tensor:
    """Normalize every position to unit mean square."""
    return F.rms_norm(h, h.shape[-1:], eps=EPS)
