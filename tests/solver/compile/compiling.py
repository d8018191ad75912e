"""What tests of torch.compile share: a model around a solve, its gradients, their comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.solver.cells import MLP
from torch_revdeq import RevDEQ


class Model(nn.Module):
    """A solve between other layers."""

    def __init__(self, f: nn.Module | None = None, **options: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 16), nn.Linear(16, 2)
        self.equilibrium: Any = RevDEQ(f or MLP(), **{"max_steps": 3, "beta": 0.7, **options})

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.relu(self.equilibrium(torch.relu(self.encoder(x)))))


def whole(model: Any, backend: Any = "aot_eager") -> Callable[..., Any]:
    """The model, to be compiled as one graph."""
    return torch.compile(model, fullgraph=True, backend=backend)


def gradients(model: nn.Module, run: Callable[..., Tensor], x: Tensor) -> list[Tensor | None]:
    """Those of the model's parameters, of a loss of what `run` gives for x."""
    model.zero_grad()
    run(x).square().sum().backward()
    return [p.grad for p in model.parameters()]


def assert_same(got: list[Tensor | None], want: list[Tensor | None]) -> None:
    """Bit for bit: aot_eager runs the operators of eager mode."""
    for a, b in zip(got, want, strict=True):
        assert a is not None
        assert torch.equal(a, torch.zeros_like(a) if b is None else b)
