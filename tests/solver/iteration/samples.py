"""Helpers shared by the tests of ``per_sample``: samples that converge one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.tolerances import beside_bound, gradient_bound

ADJOINTS = ["reversible", "hooks", "checkpoint"]
SAMPLES = 6
TOL = 1e-2


class Rows(nn.Module):
    """Contracts every sample by its own factor, `rate`."""

    def __init__(self, d: int = 8, p: float = 0.0) -> None:
        super().__init__()
        self.w, self.drop = nn.Linear(d, d), nn.Dropout(p)
        with torch.no_grad():
            self.w.weight.copy_(torch.linalg.qr(self.w.weight)[0])

    def forward(self, z: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        return torch.tanh(rate * self.w(self.drop(z)) + x)


class Mixing(Rows):
    """The same, with a mean over the samples as in BatchNorm: samples are not independent."""

    def forward(self, z: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        out = super().forward(z, x, rate)
        return out - 0.2 * out.flatten(0, -2).mean(0)


class Normed(Rows):
    """The same, with BatchNorm itself."""

    def __init__(self, d: int = 8, p: float = 0.0) -> None:
        super().__init__(d, p)
        self.norm = nn.BatchNorm1d(d)

    def forward(self, z: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        out = super().forward(z, x, rate)
        return 0.8 * out + 0.2 * self.norm(out)


ROWS, TOKENS = (6,), (2, 3)
CONTRACTIONS: dict[str, tuple[type[Rows], tuple[int, ...], int]] = {
    "rows": (Rows, ROWS, 1),
    "mixing": (Mixing, ROWS, 1),
    "normed": (Normed, ROWS, 1),
    "lone tokens": (Rows, TOKENS, 2),
    "tokens": (Mixing, TOKENS, 2),
    "features": (Mixing, TOKENS, 3),
}
"""f, the shape of a state without its features, and the number of dimensions of a sample."""


def problem(
    name: str = "rows", dtype: torch.dtype = torch.float32, d: int = 8, **options: Any
) -> tuple[Rows, Tensor, Tensor, Tensor]:
    """f, z0, x and the rates, with which the samples converge one after the other."""
    torch.manual_seed(0)
    kind, shape, _ = CONTRACTIONS[name]
    f = kind(d, **options).to(dtype)
    x = torch.randn(*shape, d, dtype=dtype)
    rate = torch.linspace(0.1, 0.8, SAMPLES, dtype=dtype).view(*shape, 1)
    z0 = torch.tanh(x) + torch.logspace(-2, 0.5, SAMPLES, dtype=dtype).view(*shape, 1)
    return f, z0, x.requires_grad_(), rate.requires_grad_()


def looped(
    f: Callable[[Tensor], Tensor],
    z0: Tensor,
    beta: float | Tensor,
    steps: int,
    every: int = 1,
    dims: int = 1,
) -> tuple[Tensor, Tensor, list[int], list[float]]:
    """z, y, and the steps and residual of each sample: the definition, sample by sample."""

    def whole(samples: list[Tensor]) -> Tensor:
        return torch.stack(samples).view(z0.shape)

    y, z = ([*z0.flatten(0, dims - 1)] for _ in range(2))
    moves, taken, residuals = [True] * len(z), [0] * len(z), [0.0] * len(z)
    for n in range(steps):
        value = f(whole(z)).flatten(0, dims - 1)
        y = [(1 - beta) * a + beta * b if m else a for a, b, m in zip(y, value, moves, strict=True)]
        value = f(whole(y)).flatten(0, dims - 1)
        z = [(1 - beta) * a + beta * b if m else a for a, b, m in zip(z, value, moves, strict=True)]
        taken = [t + m for t, m in zip(taken, moves, strict=True)]
        if (n + 1) % every == 0 or n + 1 == steps:
            for i in range(len(z)):
                if moves[i]:
                    norms = (y[i] - value[i]).norm(), value[i].norm()
                    residuals[i] = (norms[0] / (1e-5 + norms[1])).item()
                    moves[i] = not residuals[i] < TOL
        if not any(moves):
            break
    return whole(z), whole(y), taken, residuals


def explained(steps: int, *stats: Any, f: torch.dtype = torch.float64) -> float:
    """Error of a gradient compared to stored activations, given the reconstruction error.

    For solves with a float64 state, whose error is largest at the initial state. Curvature and
    terms are those of these cells, with a margin. An f in float32 adds the roundings of its input.
    """
    back = 4.0 * sum(s.reconstruction_error or 0.0 for s in stats)  # the bound is relative
    bound = gradient_bound(f, back, steps, curvature=2.0, terms=32)
    if f != torch.float64:
        bound += beside_bound(steps, curvature=2.0, terms=0, magnitude=4.0, f=f)
    assert bound < 1e-2, "the states came back so far off that this says nothing"
    return bound


def spread(stats: Any) -> list[int]:
    """The steps of the samples, which must differ, or tests would prove nothing."""
    taken = stats.sample_steps.flatten().tolist()
    assert len(set(taken)) >= 2, taken
    assert max(taken) == stats.steps
    return taken
