"""More places that f may write: arguments, long logs, arrays of numpy, attributes of a class."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_revdeq import solve

REPLAYED = ["reversible", "hooks", "checkpoint"]
FLOAT: dict[str, dict[str, Any]] = {"functional": {"state": torch.float32}}


def start() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 16)


# ---- arguments ---------------------------------------------------------------------------------


def counted(z: Tensor, x: Tensor, count: Tensor, *, step: int) -> Tensor:
    count.detach().add_(1 + step)
    return torch.tanh(0.5 * z + x)


def caching(z: Tensor, x: Tensor, cache: Tensor, *, step: int) -> Tensor:
    with torch.no_grad():
        cache.copy_(z.sum())
    return torch.tanh(0.5 * z + cache + x)


def late(z: Tensor, x: Tensor, count: Tensor, *, step: int) -> Tensor:
    if step == 2:
        count.add_(1)
    return torch.tanh(0.5 * z + x)


@pytest.mark.parametrize("adjoint", ["reversible", "functional", "hooks", "checkpoint"])
@pytest.mark.parametrize("f", [counted, caching, late])
def test_an_argument_that_f_writes(f: Any, adjoint: Any) -> None:
    """It is put back; with saved-tensor hooks, whose checks go by versions, the solve raises."""
    options: dict[str, Any] = {"max_steps": 3, "pass_step": True, **FLOAT.get(adjoint, {})}

    def left(adjoint: Any) -> Tensor:
        count, x = torch.zeros(()), start().requires_grad_()
        solve(f, torch.zeros_like(x), x, count, adjoint=adjoint, **options).z.sum().backward()
        return count

    if adjoint in ("hooks", "checkpoint"):
        with pytest.raises(RuntimeError, match="an argument changed in place"):
            left(adjoint)
    else:
        assert torch.equal(left(adjoint), left("backprop"))


def test_an_argument_that_f_writes_and_reads_is_refused() -> None:
    def f(z: Tensor, x: Tensor, count: Tensor) -> Tensor:
        count.add_(1)
        return torch.tanh(0.5 * z + count * x)

    x = start().requires_grad_()
    with pytest.raises(RuntimeError, match="expected to read none of the buffers and tensors"):
        solve(f, x, x, torch.zeros(()))
    with torch.no_grad():
        solve(f, x, x, torch.zeros(()), adjoint="hooks")


# ---- what a module holds -----------------------------------------------------------------------


class Crowded(nn.Module):
    """Counts in places that are looked into without comparing their elements."""

    total = 0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.log: list[float] = [0.0] * 20_000
        self.recent, self.by_call = deque(self.log), dict.fromkeys(range(20_000), 0.0)
        self.counts = np.zeros(16)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        out = torch.tanh(self.linear(z) + x)
        mean = out.detach().mean(0)
        self.log.append(float(mean[0]))
        self.recent.append(float(mean[0]))
        self.by_call[len(self.by_call)] = float(mean[0])
        self.counts += mean.numpy()
        Crowded.total += 1
        return out

    def read(self) -> list[Any]:
        longs = [self.log, list(self.recent), list(self.by_call.items())]
        return [*longs, self.counts.tolist()]


@pytest.mark.parametrize("adjoint", REPLAYED)
def test_long_logs_arrays_and_attributes_of_a_class(adjoint: str) -> None:
    def left(adjoint: Any) -> list[Any]:
        torch.manual_seed(1)
        f, x = Crowded(), start()
        solve(f, torch.zeros_like(x), x, adjoint=adjoint, max_steps=4).z.square().sum().backward()
        return f.read()

    before = Crowded.total
    assert left(adjoint) == left("backprop")
    assert before + 16 == Crowded.total
