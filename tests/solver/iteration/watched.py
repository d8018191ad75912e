"""Helpers shared by the tests of ``trace`` and ``on_step``: many kinds of solves and results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.solver.cells import MLP, Normed
from tests.solver.composing import Auxiliary
from torch_revdeq import Solution, StoppingRule, solve

F32, F64 = torch.float32, torch.float64
ADJOINTS = ["reversible", "hooks", "checkpoint", "backprop"]
MASK = torch.arange(6) < 4


class Change(StoppingRule):
    """The length of the last step; stateful, so it must not be called more often."""

    last: Tensor | None = None

    def residual(self, y: Tensor, f: Tensor) -> Tensor:
        found = y.new_full((), 9.0) if self.last is None else (y - self.last).norm()
        self.last = y
        return found


CASES: dict[str, dict[str, Any]] = {
    "all steps": {},
    "float32": {"state": F32},
    "bfloat16": {"state": torch.bfloat16, "max_steps": 2, "check": False},
    "tol": {"tol": 0.02},
    "tol, checked at times": {"tol": 0.02, "check_every": 3},
    "per_sample": {"tol": 0.02, "per_sample": True},
    "per_sample, checked at times": {"tol": 0.02, "per_sample": True, "check_every": 2},
    "tokens": {"tol": 0.02, "per_sample": 2},
    "rule": {"tol": Change(0.05)},
    "rule, checked at times": {"tol": Change(0.05), "check_every": 2},
    "masked": {"residual_mask": MASK},
    "masked, tol": {"tol": 0.02, "residual_mask": MASK},
    "aux": {"has_aux": True},
    "saved": {"save_at": [2, 5]},
    "truncated": {"backward_steps": 2},
    "a beta for each step": {"beta": lambda n: 0.4 if n % 2 else 0.7},
    "dropout": {},
    "batch norm": {},
}


def problem(case: str) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    torch.manual_seed(0)
    options = {"max_steps": 12, **CASES[case]}
    dtype = torch.bfloat16 if case == "bfloat16" else F32
    x = torch.randn(*(2, 3) if case == "tokens" else (6,), 16, dtype=dtype, requires_grad=True)
    if case == "batch norm":
        return Normed(), x, options
    kind = Auxiliary if case == "aux" else MLP
    return kind(p=0.3 if case == "dropout" else 0.0, dtype=dtype), x, options


def scaled(x: Tensor) -> Tensor:
    """Samples of which some converge sooner."""
    return x * torch.logspace(-1.5, 0.0, 6).view(*x.shape[:-1], 1).to(x.dtype)


def run(case: str, **more: Any) -> tuple[Solution, list[Tensor]]:
    """Run a solve; returns all results: final states, other outputs, gradients, buffers."""
    f, x, options = problem(case)
    torch.manual_seed(1)
    solution = solve(f, torch.zeros_like(x), scaled(x), **options, **more)
    outputs = pytree.tree_leaves((solution.z, solution.y, solution.saved, solution.aux))
    outputs = [t for t in outputs if t is not None]
    loss = torch.stack([t.double().square().sum() for t in outputs]).sum()
    grads = torch.autograd.grad(loss, [x, *f.parameters()])
    drawn = torch.rand(3)
    return solution, [*outputs, *grads, *f.buffers(), drawn]


def assert_same_bits(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    assert len(got) == len(want) and all(map(torch.equal, got, want))
