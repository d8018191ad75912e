"""What a user can have without this project: loops of his own, checkpoints, and torchdeq."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.solver.methods import COST, ERROR, GRAPHED, LOOP, OPTIONS, Method, Skipped
from torch_revdeq import Anderson, Broyden, FixedPointSolver, fixed_point

# Recorded evaluations of f in a phantom gradient, as its paper and torchdeq's examples have them.
PHANTOM_STEPS = 5


def half_step(f: nn.Module, state: Tensor, at: Tensor, x: Tensor, beta: float) -> Tensor:
    """One of the two updates of a step, as `lerp_loop` takes it."""
    return torch.lerp(state, f(at, x), beta)


def checkpoint_loop(f: nn.Module, z0: Tensor, x: Tensor, beta: float, steps: int) -> Tensor:
    """The loop with torch's checkpoint around every half step: states stored, f computed again."""
    y = z = z0
    for _ in range(steps):
        y = checkpoint(half_step, f, y, z, x, beta, use_reentrant=False)
        z = checkpoint(half_step, f, z, y, x, beta, use_reentrant=False)
    return z


def naive_loop(
    f: nn.Module, z0: Tensor, x: Tensor, beta: float, steps: int, *, state: torch.dtype
) -> Tensor:
    """The reversible solve as one writes it from the paper, with y and z in `state`."""
    z = NaiveReversible.apply(f, z0.to(state), x, beta, steps, *f.parameters())
    assert isinstance(z, Tensor)
    return z.to(z0.dtype)


class NaiveReversible(torch.autograd.Function):
    """Reconstructs by division, without checking the result. f computes in the dtype of x.

    f is evaluated once per half step of the backward pass: the inverse and the gradient share it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        f: nn.Module,
        z0: Tensor,
        x: Tensor,
        beta: float,
        steps: int,
        *parameters: Tensor,
    ) -> Tensor:
        """The loop; of its states the last two are kept."""
        y = z = z0
        for _ in range(steps):
            y = (1 - beta) * y + beta * f(z.to(x.dtype), x)
            z = (1 - beta) * z + beta * f(y.to(x.dtype), x)
        ctx.save_for_backward(y, z, x, *parameters)
        ctx.f, ctx.beta, ctx.steps = f, beta, steps
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """The steps in reverse; gradients for the parameters alone, which is what is asked for."""
        y, z, x, *parameters = ctx.saved_tensors
        beta, (grad_z,) = ctx.beta, gradients
        grad_y = torch.zeros_like(grad_z)
        totals = [torch.zeros_like(parameter) for parameter in parameters]

        def back(state: Tensor, at: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
            """The state before its half step, and what the half step hands to `at`."""
            with torch.enable_grad():
                read = at.to(x.dtype).detach().requires_grad_()
                found = ctx.f(read, x)
            seed = (beta * gradient).to(found.dtype)
            grad_at, *of_parameters = torch.autograd.grad(found, (read, *parameters), seed)
            for total, part in zip(totals, of_parameters, strict=True):
                total.add_(part)
            return (state - beta * found.detach()) / (1 - beta), grad_at

        for _ in range(ctx.steps):
            z, handed = back(z, y, grad_z)
            grad_y, grad_z = grad_y + handed, (1 - beta) * grad_z
            y, handed = back(y, z, grad_y)
            grad_z, grad_y = grad_z + handed, (1 - beta) * grad_y
        return None, None, None, None, None, *totals


def torchdeq_loop(
    f: nn.Module,
    z0: Tensor,
    x: Tensor,
    beta: float,
    steps: int,
    *,
    ift: bool = False,
    broyden: bool = False,
) -> Tensor:
    """The limit by torchdeq: f is evaluated 2N times before its gradient is asked for. No beta.

    By z <- f(z), or by Broyden's method. IFT solves for the gradient by 2N products. A phantom
    gradient is that of the last evaluations.
    """
    found, _ = _torchdeq(steps, ift, broyden)(lambda z: f(z, x), z0)
    return found[-1]


def limit_loop(
    f: nn.Module, z0: Tensor, x: Tensor, beta: float, steps: int, *, solver: FixedPointSolver
) -> Tensor:
    """The limit by `fixed_point`, with a phantom gradient, by 2N evaluations as torchdeq has it."""
    recorded = _recorded(steps)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fixed_point: expected a residual", UserWarning)
        return fixed_point(
            f,
            z0,
            x,
            solver=solver,
            tol=0.0,
            max_steps=max(1, 2 * steps - recorded),
            adjoint="phantom",
            phantom_steps=recorded,
            phantom_beta=1.0,
        ).z


def _recorded(steps: int) -> int:
    """Evaluations of a phantom gradient: two at least are left to a method that learns from two."""
    return min(PHANTOM_STEPS, max(1, 2 * steps - 2))


@cache
def _torchdeq(
    steps: int, ift: bool, broyden: bool = False
) -> Callable[..., tuple[Sequence[Tensor], Any]]:
    try:
        torchdeq = importlib.import_module("torchdeq")
    except ImportError as error:
        raise Skipped(f"torchdeq cannot be imported ({error}): pip install torchdeq") from None
    recorded = 1 if ift else min(PHANTOM_STEPS, 2 * steps - 1)
    if broyden:
        recorded = _recorded(steps)
    return torchdeq.get_deq(
        f_solver="broyden" if broyden else "fixed_point_iter",
        b_solver="fixed_point_iter",
        # Broyden's first evaluation is none of its iterations.
        f_max_iter=2 * steps - recorded - broyden,
        b_max_iter=2 * steps,
        # Nothing stops early, so that everybody evaluates f as often.
        f_tol=0.0,
        b_tol=0.0,
        ift=ift,
        grad=recorded,
    )


PEERS = (
    LOOP,
    *(method for method in OPTIONS if method.name == "lerp loop, compiled"),
    Method("torch checkpoint", loop=checkpoint_loop),
    Method("naive float32", torch.float32, loop=partial(naive_loop, state=torch.float32)),
    Method("naive float64", torch.float64, loop=partial(naive_loop, state=torch.float64)),
    Method("torchdeq IFT", loop=partial(torchdeq_loop, ift=True)),
    Method("torchdeq phantom", loop=torchdeq_loop),
    Method("torchdeq Broyden", loop=partial(torchdeq_loop, broyden=True)),
    Method("fixed_point Broyden", loop=partial(limit_loop, solver=Broyden(batched=True))),
    Method("fixed_point Anderson", loop=partial(limit_loop, solver=Anderson(batched=True))),
    Method("jax revdeq float32", torch.float32, jax=True),
    Method("jax revdeq float64", torch.float64, jax=True),
    *(m for m in COST if m.name in ("reversible exact", "reversible float32", "backprop exact")),
    Method("exact, f compiled", "exact", "reversible", compiled="f"),
    GRAPHED,
    Method("lerp loop, f bfloat16", f=torch.bfloat16),
    *(m for m in ERROR if m.name == "exact, f bfloat16"),
)
"""Train steps of others, and this project's for comparison."""

IN_LARGEST = tuple(m for m in PEERS if m.name in ("torch checkpoint", "torchdeq IFT"))
"""Those for which the largest N and batch are searched."""
