"""The order of samples, and all random numbers of a run, as functions of its seed.

There is no state to store: a run that is resumed at a position continues with the same bits. The
random numbers of a sample do not depend on the number of processes.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

DRAWS = 3
"""Random numbers per sample: the position of a crop or a window, and whether it is mirrored."""


def seed_of(*parts: int | str) -> int:
    """A seed for each combination of parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # the range that torch.Generator takes


class Order:
    """An endless sequence of samples: one epoch after another, each in its own random order.

    Args:
        size: samples of an epoch.
        seed: of the run.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._epoch = -1

    def take(self, position: int, count: int) -> tuple[Tensor, Tensor]:
        """The samples from a position on: indices (count,), int64; draws (count, 3), float64."""
        indices, draws = [], []
        while count:
            epoch, first = divmod(position, self.size)
            self._shuffle(epoch)
            here = min(count, self.size - first)
            indices.append(self._indices[first : first + here])
            draws.append(self._draws[first : first + here])
            position, count = position + here, count - here
        return torch.cat(indices), torch.cat(draws)

    def _shuffle(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        self._indices = torch.randperm(self.size, generator=generator)
        self._draws = torch.rand(self.size, DRAWS, generator=generator, dtype=torch.float64)
        self._epoch = epoch
