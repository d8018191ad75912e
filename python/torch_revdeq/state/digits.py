"""Memory for the digits (remainder bits) of exact half steps, and the choice of fractional bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from revdeq_kernels import digit_bytes

from ..evaluation.places import first_not_finite, largest
from ..iteration.beta import BetaSchedule
from ..runtime.magnitude import magnitude

CHUNK = 8
"""Steps whose digits are allocated together if the number of steps is not known beforehand."""

HEADROOM = 32.0
"""The factor by which the state may grow beyond the first half step."""

MOST_BITS = {torch.float32: 20, torch.bfloat16: 16, torch.float16: 16}
"""Most fractional bits by dtype of f: more would be finer than f's own precision."""


class Digits:
    """One plane of digits for each half step and leaf, in buffers of whole steps."""

    def __init__(
        self,
        numels: Sequence[int],
        schedule: BetaSchedule,
        device: torch.device,
        *,
        chunk: int,
        first: int = 0,
    ) -> None:
        """Allocate nothing yet. Digits that are not kept overwrite one scratch plane.

        Args:
            numels: elements of each leaf.
            schedule: its betas determine the size of a digit.
            device: of the buffers.
            chunk: steps to allocate at a time; 0 keeps nothing.
            first: the first step whose digits are kept.
        """
        self.numels, self.schedule, self.device, self.chunk = list(numels), schedule, device, chunk
        self.first = first
        self.buffers: list[Tensor] = []
        self._planes: list[list[Tensor]] = []
        self._scratch: list[Tensor] = []

    def planes(self, n: int, second: int) -> list[Tensor]:
        """The planes of a half step, one for each leaf."""
        at = 2 * (n - self.first) + second
        if at < 0 or not self.chunk:
            return self._not_kept()
        while at >= len(self._planes):
            self._grow()
        return self._planes[at]

    def in_buffers(self, buffers: Sequence[Tensor]) -> Digits:
        """The same planes in other buffers of the same sizes, such as those autograd saved."""
        options = {"chunk": self.chunk, "first": self.first}
        digits = Digits(self.numels, self.schedule, self.device, **options)
        for buffer in buffers:
            digits._add(buffer, digits._sizes_of_next())
        return digits

    def bytes(self, steps: int) -> int:
        """The bytes of the digits of a solve with this many steps; 0 if none are kept."""
        return sum(self._sizes(self.first, steps)) if self.chunk else 0

    def _grow(self) -> None:
        sizes = self._sizes_of_next()
        self._add(torch.empty(sum(sizes), dtype=torch.uint8, device=self.device), sizes)

    def _add(self, buffer: Tensor, sizes: list[int]) -> None:
        flat, leaves = torch.split_with_sizes(buffer, sizes), len(self.numels)
        self._planes += [list(flat[i : i + leaves]) for i in range(0, len(flat), leaves)]
        self.buffers.append(buffer)

    def _sizes_of_next(self) -> list[int]:
        first = self.first + len(self._planes) // 2
        return self._sizes(first, first + self.chunk)

    def _sizes(self, first: int, last: int) -> list[int]:
        """Bytes of each plane, by half step and leaf; both half steps of a step have one size."""
        betas = self.schedule.numbers[first : min(last, self.schedule.max_steps)]
        of = {beta: [digit_bytes(numel, beta) for numel in self.numels] * 2 for beta in set(betas)}
        if len(of) == 1:  # the common case
            return of[betas[0]] * len(betas)
        return [size for beta in betas for size in of[beta]]

    def _not_kept(self) -> list[Tensor]:
        if not self._scratch:
            betas = set(self.schedule.numbers)
            sizes = [max(digit_bytes(numel, beta) for beta in betas) for numel in self.numels]
            self._scratch = [
                torch.empty(size, dtype=torch.uint8, device=self.device) for size in sizes
            ]
        return self._scratch


def most_bits(dtypes: Sequence[torch.dtype]) -> int:
    """The fractional bits that match the coarsest of f's dtypes."""
    return min(MOST_BITS[dtype] for dtype in dtypes)


def choose_frac_bits(
    dtypes: Sequence[torch.dtype], seen: Mapping[str, Sequence[Tensor]], structure: Any = None
) -> int:
    """Fractional bits by the magnitude of the initial state and f there; reads the device once.

    As many that HEADROOM times the largest number stays in range, but no more than match f's dtype:
    min(20 or 16, floor(30 - log2(HEADROOM max(1, largest)))).

    Args:
        dtypes: the dtypes of f.
        seen: lists of leaves, by the names used in an error.
        structure: of the tree of leaves, for an error.
    """
    leaves = [leaf for part in seen.values() for leaf in part if leaf.numel()]
    norms = [magnitude(leaf).float() for leaf in leaves]
    if norms and norms[0].device.type != "cpu":  # one read of the device
        norms = [torch.stack(norms).max()]
    sizes = [float(norm) for norm in norms]
    size = max(sizes, default=0.0) if all(map(math.isfinite, sizes)) else math.nan
    if not math.isfinite(size):
        got = first_not_finite(seen, structure) or "numbers beyond the range of float32"
        raise RuntimeError(
            f"f: expected finite numbers in z0, y0 and f(z0), got {got}; fix f or its input, or "
            "choose state=torch.float32, which lets NaN and Inf propagate"
        )
    bits = math.floor(30 - math.log2(HEADROOM * max(1.0, size)))
    if bits < 0:
        raise RuntimeError(
            f"f: expected numbers below 2**25 for an exact state, got {largest(seen, structure)}; "
            "scale the state down (a normalization in f), or choose state=torch.float32 or "
            "torch.float64"
        )
    return min(most_bits(dtypes), bits)
