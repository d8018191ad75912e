"""Helpers shared by the solver's tests: ways to solve, the plain loop, bitwise comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torch_revdeq import solve

Solver: TypeAlias = Callable[..., Tensor]
"""A way to solve: a function (f, z0, *args) -> z."""

STEPS = 4


def run(adjoint: str, **options: object) -> Solver:
    """A solve with this adjoint, as a function that returns z."""
    return lambda f, z0, *args: (
        solve(f, z0, *args, **{"max_steps": STEPS, "adjoint": adjoint, **options}).z
    )


REVERSIBLE = [pytest.param(run(adjoint), id=adjoint) for adjoint in ("reversible", "hooks")]
defined = run("backprop")


def loop(
    f: Callable[..., Any], z0: Any, *args: Any, steps: int = STEPS, beta: float = 0.5
) -> tuple[Any, Any]:
    """z and y after these steps, in plain PyTorch with autograd: the definition."""
    y = z = z0
    for _ in range(steps):
        y = (1 - beta) * y + beta * f(z, *args)
        z = (1 - beta) * z + beta * f(y, *args)
    return z, y


def found_by(run: Callable[[Any], Any], *adjoints: Any) -> list[list[Any]]:
    """The leaves of the results of `run` with each adjoint, from the same random numbers."""
    found = []
    for adjoint in adjoints:
        torch.manual_seed(0)
        found.append(pytree.tree_leaves(run(adjoint)))
    return found


def assert_alike(run: Callable[[Any], Any], *adjoints: Any) -> None:
    """Assert that `run` returns the same bits with each adjoint and with stored activations."""
    *others, want = found_by(run, *adjoints, "backprop")
    assert want
    for adjoint, got in zip(adjoints, others, strict=True):
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            same = torch.equal(a, b) if isinstance(b, Tensor) else a == b
            assert same, (adjoint, i, a, b)


def inputs(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape or (6, 16), requires_grad=True)


def gradients(
    use: Callable[[Callable[..., Tensor]], Tensor],
    how: Callable[..., Tensor],
    wrt: Sequence[Tensor],
) -> list[Tensor | None]:
    """The gradients after backward(), as an optimizer sees them."""
    for tensor in wrt:
        tensor.grad = None
    use(how).square().sum().backward()
    return [None if t.grad is None else t.grad.clone() for t in wrt]


def assert_same(
    use: Callable[[Callable[..., Tensor]], Tensor],
    how: Callable[..., Tensor],
    wrt: Sequence[Tensor],
) -> None:
    """Assert the same bits as with stored activations, and None where these are None."""
    got, want = gradients(use, how, wrt), gradients(use, defined, wrt)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a is None) == (b is None), i
        if a is not None and b is not None:
            assert torch.equal(a.to_dense(), b.to_dense()), (i, (a - b).abs().max())
