"""The ways to solve the equilibrium cell that are compared, and the gate before the stop-watch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import revdeq_kernels as rk
from bench.core import providers, timing
from bench.core.case import Call
from revdeq_kernels.ops.cell import choice as cell_choice
from torch_revdeq import solve

BETA, ACT = 0.5, "tanh"
GATE_ROWS = 257

Pair = tuple[Tensor, Tensor]
Solve = Callable[[Tensor, Tensor, Tensor, int], Pair]


def frac_bits(w: Tensor) -> int:
    """Those that solve chooses for an f in w's dtype."""
    return 20 if w.dtype == torch.float32 else 16


def eager(u: Tensor, w: Tensor, z0: Tensor, steps: int) -> Pair:
    """The loop as one writes it."""
    y, z = z0, z0
    for _ in range(steps):
        y = torch.lerp(y, torch.tanh(F.linear(z.to(w.dtype), w) + u).float(), BETA)
        z = torch.lerp(z, torch.tanh(F.linear(y.to(w.dtype), w) + u).float(), BETA)
    return y, z


def by_solver(u: Tensor, w: Tensor, z0: Tensor, steps: int) -> Pair:
    """The general solver."""

    def f(z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(F.linear(z.to(w.dtype), w) + u)

    solution = solve(f, z0, u, beta=BETA, max_steps=steps, frac_bits=frac_bits(w))
    return solution.y, solution.z


def by_op(implementation: str, u: Tensor, w: Tensor, z0: Tensor, steps: int) -> Pair:
    """One op for all steps."""
    options = {"frac_bits": frac_bits(w), "implementation": implementation}
    y, z, *_ = rk.linear_cell_forward(u, w, z0, BETA, steps, ACT, **options)
    return y, z


def solves(w: Tensor) -> dict[str, Solve]:
    """The providers that can run for such a cell."""
    found: dict[str, Solve] = {
        "eager loop": eager,
        "compiled loop": providers.compiled(eager),  # type: ignore[dict-item]
        "solve": by_solver,
        "composite": partial(by_op, "composite"),
    }
    for name in ("triton", "gluon") if w.device.type == "cuda" else ("cpu",):
        if cell_choice.why_not(name, w, ACT) is None:
            found[name] = partial(by_op, name)
    return found


def call_of(part: str, run: Solve, tensors: Sequence[Tensor], steps: int) -> Call:
    """A call that solves, and in `train` differentiates; its results are those to compare."""
    u, w, z0 = tensors

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return list(run(u, w, z0, steps))

    def train() -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        y, z = run(leaves[0], leaves[1], leaves[2], steps)
        return [y.detach(), z.detach(), *torch.autograd.grad([z], leaves, [torch.ones_like(z)])]

    return forward if part == "forward" else train


def refusal(part: str, run: Solve, tensors: Sequence[Tensor], steps: int) -> str | None:
    """Why a provider must not be timed: its results are off those of the composite.

    f rounded to w's dtype, as an eager f is, is a unit off in each of its three operations, in
    every half step, and an exact state three quarters of a step of its grid; a cell that contracts
    halves what came before.
    """
    few = [tensors[0][:GATE_ROWS], tensors[1], tensors[2][:GATE_ROWS]]
    bound = 2 * 3 * torch.finfo(few[1].dtype).eps + 4 * 2.0 ** -frac_bits(few[1])
    try:
        got: list[Tensor] = call_of(part, run, few, steps)()  # type: ignore[assignment]
        composite = partial(by_op, "composite")
        want: list[Tensor] = call_of(part, composite, few, steps)()  # type: ignore[assignment]
    except Exception as error:  # it is printed, stored, and fails the run
        return timing.reason(error)
    for a, b in zip(got, want, strict=True):
        off = float((a.float() - b.float()).norm() / b.float().norm())
        if not off <= bound:
            return f"results are {off:.2g} off the composite's, {bound:.2g} are explained"
    return None
