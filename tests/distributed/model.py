"""Helpers shared by the cases of ``test_distributed``: model, data, reference, comparison.

The reference is one process with the whole batch and stored activations. Each case runs on all
ranks, and returns the error of its gradients compared to the reference. ``test_distributed`` reads
the expected outcome from the case.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torch_revdeq import RevDEQ, solve

STEPS = 5
WIDTH = 8

Expected = Literal["right", "rounded", "wrong", "sharded f", "wrapped f", "another graph"]
"""The expected outcome of a case: gradients, or the name of an error; see its test."""


class Case(NamedTuple):
    """A function and its arguments."""

    function: Callable[..., float]
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    expect: Expected

    def run(self) -> float:
        return self.function(*self.args, **self.keywords)


CASES: dict[str, Case] = {}
"""By name; filled by the modules that define the cases."""

Form = Literal["layer", "closure", "method"]
"""How the model calls the solver: RevDEQ on the cell, RevDEQ on a function that closes over it, or
solve on a method of the model itself."""


def case(name: str, *args: Any, expect: Expected = "right", **keywords: Any) -> Callable[..., Any]:
    """Register a function as a case, called with these arguments; may be repeated."""

    def register(function: Callable[..., float]) -> Callable[..., float]:
        assert name not in CASES, name
        CASES[name] = Case(function, args, keywords, expect)
        return function

    return register


class Cell(nn.Module):
    """f of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(WIDTH, 2 * WIDTH)
        self.b = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.b(torch.tanh(self.a(z))) + x)


class Model(nn.Module):
    """Encoder, equilibrium, decoder."""

    def __init__(
        self,
        form: Form = "layer",
        *,
        unused: bool = False,
        shared: bool = False,
        **options: Any,
    ) -> None:
        """The model, always with the same weights; `shared`: the cell also runs after the solve."""
        super().__init__()
        torch.manual_seed(0)
        options = {"max_steps": STEPS, **options}
        self.encoder = nn.Linear(4, WIDTH)
        self.decoder = nn.Linear(WIDTH, 3)
        cell = Cell()
        if unused:
            self.unused = nn.Linear(2, 2)
        self.form, self.shared, self.options = form, shared, options
        if form == "layer":
            self.solver = RevDEQ(cell, **options)
        else:
            self.cell = cell
        if form == "closure":

            def f(z: Tensor, x: Tensor) -> Tensor:
                return cell(z, x)

            self.solver = RevDEQ(f, **options)

    @property
    def f(self) -> Any:
        """The cell, regardless of where it is registered."""
        return self.solver.f if self.form == "layer" else self.cell

    def sharpened(self, gain: float) -> Model:
        """The model itself, with a cell that contracts less, and not uniformly."""
        with torch.no_grad():
            for p in self.f.parameters():
                p.mul_(gain)
        return self

    def step(self, z: Tensor, x: Tensor) -> Tensor:
        return self.f(z, x)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.encoder(x))
        if self.form == "method":
            z = solve(self.step, torch.zeros_like(h), h, **self.options).z
        else:
            z = self.solver(h)
        return self.decoder(self.f(z, h) if self.shared else z)


def rank() -> int:
    return int(os.environ["RANK"])


def world() -> int:
    return int(os.environ["WORLD_SIZE"])


def batch() -> Tensor:
    """All data; magnitudes differ, so that the ranks have different gradients."""
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    return x * torch.linspace(0.5, 2.0, 8)[:, None]


def shard(x: Tensor) -> Tensor:
    """This rank's part of the data."""
    return x.chunk(world())[rank()]


def backward(model: nn.Module, x: Tensor) -> None:
    """The gradients of a mean over samples: those of equal shards average to the batch's."""
    model(x).float().square().mean().backward()


def reference(form: Form = "layer", **options: Any) -> Model:
    """The reference and its gradients: one process, the whole batch, stored activations."""
    model = Model(form, **{**options, "adjoint": "backprop"})
    backward(model, batch())
    return model


def gradient_error(model: nn.Module, expected: nn.Module) -> float:
    """The largest difference of a gradient, relative to the largest gradient."""
    pairs = _paired(model, expected)
    for name, (got, want) in pairs.items():
        assert (got.grad is None) == (want.grad is None), f"{name}: {got.grad} against {want.grad}"
    return _relative([(got.grad, want.grad) for got, want in pairs.values()])


def parameter_error(model: nn.Module, expected: nn.Module) -> float:
    """The largest difference of a parameter, relative to the largest parameter."""
    return _relative(list(_paired(model, expected).values()))


def twice(model: nn.Module, expected: nn.Module, x: Tensor | None = None) -> float:
    """The worst error of two iterations, by default on this rank's shard."""
    x = shard(batch()) if x is None else x
    errors = []
    for _ in range(2):
        model.zero_grad()
        backward(model, x)
        errors.append(gradient_error(model, expected))
    return torch.tensor(errors).max().item()  # NaN stays NaN


def gathered(value: float) -> list[float]:
    """The values of all ranks."""
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def _paired(model: nn.Module, expected: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    named = {_plain(name): p for name, p in model.named_parameters()}
    wanted = dict(expected.named_parameters())
    assert named.keys() == wanted.keys(), (named.keys(), wanted.keys())
    return {name: (p, wanted[name]) for name, p in named.items()}


def _plain(name: str) -> str:
    """A parameter's name without the prefixes of wrappers."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _relative(pairs: list[tuple[Any, Any]]) -> float:
    pairs = [(_whole(a), b.detach()) for a, b in pairs if a is not None]
    largest = max(b.abs().max().item() for _, b in pairs)
    assert largest > 1e-3
    errors = torch.stack([(a - b).abs().max() for a, b in pairs])
    return errors.max().item() / largest  # NaN stays NaN


def _whole(tensor: Any) -> Tensor:
    """A tensor assembled from the shards of all ranks."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
