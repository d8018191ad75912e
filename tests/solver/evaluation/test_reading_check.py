"""Whether f reads what it writes: what the forward pass does not take for it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_revdeq import ReconstructionError, solve


class Counter(nn.Module):
    """Writes a counter, and reads it where it is told to."""

    count: Tensor

    def __init__(self, *, reads: bool = False, noise: float = 0.0) -> None:
        super().__init__()
        self.linear, self.reads, self.noise = nn.Linear(8, 8), reads, noise
        self.register_buffer("count", torch.zeros(()))
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.count += 1.0
        x = x + self.noise * torch.randn(x.shape, generator=self.generator)
        return torch.tanh(self.linear(z) + x + (self.count if self.reads else 0.0))


def inputs() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 8)


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "functional"])
def test_a_sample_that_is_nan_is_no_change(adjoint: Any) -> None:
    f, x = Counter(), inputs()
    x[0, 0] = math.nan
    z = solve(f, torch.zeros_like(x), x, adjoint=adjoint, state=torch.float32, max_steps=3).z
    assert z[0].isnan().all() and z[1:].isfinite().all() and f.count == 6
    with pytest.raises(RuntimeError, match=r"^f: expected not to read the buffers"):
        solve(Counter(reads=True), torch.zeros_like(x), x, adjoint=adjoint, state=torch.float32)


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
def test_random_numbers_of_its_own_are_named_as_such(adjoint: Any) -> None:
    f, x = Counter(noise=0.1), inputs()
    z = solve(f, torch.zeros_like(x), x, adjoint=adjoint).z
    assert f.count == 16
    with pytest.raises(ReconstructionError, match="draws random numbers"):
        z.sum().backward()
