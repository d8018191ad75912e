"""Like ``triton_grids.py``: update_ and invert_ on 2^31 elements with a tensor of betas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from revdeq_kernels.triton import launch as launchers
from revdeq_kernels.triton.launch.leaves import BLOCK
from tests.ops.arguments import (
    arguments_of_leaf,
    assert_same_outcome,
    by_field,
    expected,
    tensors,
)
from tests.ptx.triton_grids import Range, chosen, memory_of
from tools.ptx.triton import Gpu, Launch, Part, Piece, executed

DTYPES = {"state": torch.float32, "f": torch.bfloat16, "cast": torch.bfloat16}

TOGETHER = 16
"""Adjacent betas may be loaded together, so up to this many are provided if one is needed."""


def check(op: str, shape: tuple[int, ...], beta: tuple[int, ...], stride: int, sm: int) -> int:
    """Launch with betas of this shape and stride; AssertionError for a wrong bit.

    Returns how many programs ran.
    """
    call = _Call(op, shape, beta, stride)
    with executed(sm) as gpu:
        gpu.part = lambda launch: call.part(gpu, launch)
        state, f, cast = (call.large[n] for n in DTYPES)
        getattr(launchers, op.partition(".")[0])(state, f, call.large["beta"], cast=cast)
    for one in call.ranges:
        assert_same_outcome(tensors(one.arguments), one.want, (op, shape, beta, one.first))
    return len(call.ranges)


class _Call:
    """The tensors, which have no memory, and the ranges of the state that have memory."""

    def __init__(self, op: str, shape: tuple[int, ...], beta: tuple[int, ...], stride: int) -> None:
        self.op, self.stride = op, stride
        self.large = {n: torch.empty(shape, dtype=d, device="meta") for n, d in DTYPES.items()}
        self.elements = math.prod(beta) * stride
        strides = tuple(stride if n > 1 else self.elements for n in beta)
        self.large["beta"] = torch.empty(self.elements, device="meta").as_strided(beta, strides)
        self.ranges: list[Range] = []
        self.betas: dict[int, Tensor] = {}

    def part(self, gpu: Gpu, launch: Launch) -> Part:
        given = by_field(launch.arguments)
        pieces: list[Piece] = []
        for _, first, size in chosen([given["numel"]], BLOCK):
            channels = (torch.arange(size) + first) // given["inner"] % given["channels"]
            arguments = arguments_of_leaf(self.op, (size,), seed=first % 1000)
            arguments["beta"] = _beta(channels)
            self.ranges.append(Range(0, first, size, arguments, expected(self.op, arguments)))
            pieces += self.pieces(gpu, first, arguments)
            self.need(channels)
        beta = gpu.address(self.large["beta"])
        pieces += [(beta + 4 * k, memory_of(betas)) for k, betas in self.betas.items()]
        return Part([one.first // BLOCK for one in self.ranges], pieces)

    def pieces(self, gpu: Gpu, first: int, arguments: dict[str, Any]) -> Iterator[Piece]:
        """The memory of a range."""
        for name in DTYPES:
            large = self.large[name]
            place = gpu.address(large) + first * large.element_size()
            yield place, memory_of(arguments[name])

    def need(self, channels: Tensor) -> None:
        """Provide the betas of these channels, and those in between within a stride."""
        for k in (channels * self.stride // TOGETHER * TOGETHER).unique().tolist():
            places = torch.arange(k, min(k + TOGETHER, self.elements))
            self.betas[k] = _beta(places.double() / self.stride)


def _beta(channel: Tensor) -> Tensor:
    """The beta of a channel, between 0.1 and 0.9."""
    return (torch.sin(channel.double() * 0.7) * 0.4 + 0.5).float()
