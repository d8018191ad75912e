"""Helpers shared by tests of torch.compile: a model with a solve, its gradients, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

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


def found(model: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Tensor]:
    """The result of `run`, and the gradients of its first argument and the model's parameters."""
    first = args[0].clone().requires_grad_()
    outputs = pytree.tree_leaves(run(first, *args[1:], **kwargs))
    losses = [t.double().square().sum() for t in outputs if t.requires_grad]
    wrt = [first, *(p for p in model.parameters() if p.requires_grad)]
    return [*outputs, *torch.autograd.grad(torch.stack(losses).sum(), wrt)]


def assert_like_eager(
    model: nn.Module, compiled: Callable[..., Any], *args: Any, eager: Any = None, **kwargs: Any
) -> None:
    """Assert the bits of the eager model, or of `eager`: aot_eager runs the same operators."""
    want = found(model, eager or model, *args, **kwargs)
    got = found(model, compiled, *args, **kwargs)
    assert len(got) == len(want) and all(map(torch.equal, got, want))


def gradients(model: nn.Module, run: Callable[..., Tensor], x: Tensor) -> list[Tensor | None]:
    """The gradients of the model's parameters, for a loss of `run(x)`."""
    model.zero_grad()
    run(x).square().sum().backward()
    return [p.grad for p in model.parameters()]


def assert_same(got: list[Tensor | None], want: list[Tensor | None]) -> None:
    """Assert equal bits: aot_eager runs the operators of eager mode."""
    for a, b in zip(got, want, strict=True):
        assert a is not None
        assert torch.equal(a, torch.zeros_like(a) if b is None else b)
