"""Equilibrium cells for tests, their definition with float64 autograd, and the same f for solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import revdeq_kernels as rk
from revdeq_kernels.ops.cell import choice
from revdeq_kernels.ops.cell.arguments import Gradients, Inputs, Numbers, Solved


class Act(NamedTuple):
    """An activation, and bounds on its first and second derivative."""

    function: Callable[[Tensor], Tensor]
    slope: float
    curvature: float


ACTS = {
    "tanh": Act(torch.tanh, 1.0, 0.77),
    "relu": Act(torch.relu, 1.0, 0.0),  # away from 0
    "gelu": Act(F.gelu, 1.13, 0.8),
    "silu": Act(F.silu, 1.1, 0.5),
    "gelu_tanh": Act(partial(F.gelu, approximate="tanh"), 1.13, 0.8),
}


@dataclass
class Cell:
    """The arguments of linear_cell_forward, and the incoming gradients of y and z."""

    u: Tensor
    w: Tensor
    z0: Tensor
    grad_y: Tensor
    grad_z: Tensor
    beta: float = 0.5
    steps: int = 4
    act: str = "tanh"
    state: str = "exact"
    frac_bits: int = 20
    tol: float = 0.0

    @property
    def tensors(self) -> Inputs:
        """The arguments u, w and z0."""
        return Inputs(self.u, self.w, self.z0)

    @property
    def numbers(self) -> Numbers:
        """The arguments that follow the tensors in the schemas."""
        numbers = (self.beta, self.steps, self.act, self.state, self.frac_bits, self.tol)
        return Numbers(*numbers)

    def f(self, s: Tensor, u: Tensor, w: Tensor) -> Tensor:
        """The map in plain PyTorch, in the precision of s, with rounding to w's dtype."""
        product = F.linear(_Rounded.apply(s, self.w.dtype), w)
        return ACTS[self.act].function(_RoundedGrad.apply(product, self.w.dtype) + u)


def make(rows: int, d: int, dtype: torch.dtype, seed: int = 0, **numbers: Any) -> Cell:
    """A random contractive cell, with its initial state on the grid."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    u, w = normal(rows, d), normal(d, d) * 0.4 / d**0.5
    z0 = rk.dequantize(rk.quantize(normal(rows, d), 10), 10)
    return Cell(u.to(dtype), w.to(dtype), z0, normal(rows, d), normal(rows, d), **numbers)


SMALL = {
    "composite": (32, torch.float32),
    "cpu": (32, torch.float32),
    "triton": (32, torch.float32),
    "gluon": (64, torch.float16),
}
"""Features and dtype of cells that each implementation supports; the first are fastest here."""


def acts_of(implementation: str) -> tuple[str, ...]:
    """The activations that the implementation supports."""
    return choice.GPU_ACTS if implementation in ("triton", "gluon") else tuple(ACTS)


def small(implementation: str, rows: int, **numbers: Any) -> Cell:
    """A cell that the implementation supports."""
    return make(rows, *SMALL[implementation], **numbers)


def of_rows(cell: Cell, rows: Tensor | slice) -> Cell:
    """The same cell with only these rows."""
    names = ("u", "z0", "grad_y", "grad_z")
    return replace(cell, **{name: getattr(cell, name)[rows] for name in names})


class Outcome(NamedTuple):
    """The results of a solve, and its gradients."""

    y: Tensor
    z: Tensor
    grad_u: Tensor
    grad_w: Tensor
    grad_z0: Tensor


def run(cell: Cell, **options: Any) -> Outcome:
    """The cell by the public functions, differentiated by autograd."""
    leaves = [t.clone().requires_grad_() for t in cell.tensors]
    u, w, z0 = leaves
    y, z, *_ = rk.linear_cell_forward(u, w, z0, **cell.numbers._asdict(), **options)
    grads = torch.autograd.grad([y, z], leaves, [cell.grad_y, cell.grad_z])
    return Outcome(y.detach(), z.detach(), *grads)


def both_ways(cell: Cell, implementation: str, **changed: Tensor) -> tuple[Solved, Gradients]:
    """The results of both ops; the backward op may get other arguments than the forward op."""
    options: Any = cell.numbers._asdict() | {"implementation": implementation}
    out = rk.linear_cell_forward(*cell.tensors, **options)
    given = out.ends(cell.grad_y, cell.grad_z, cell.numbers)._asdict() | cell.tensors._asdict()
    return out, rk.linear_cell_backward(**(given | changed), **options)


def stored(cell: Cell) -> Outcome:
    """In float64, with stored activations; s is rounded like in the cell, but g is not."""
    leaves = [t.double().requires_grad_() for t in cell.tensors]
    u, w, z0 = leaves

    def f(s: Tensor) -> Tensor:
        return ACTS[cell.act].function(F.linear(_Rounded.apply(s, cell.w.dtype), w) + u)

    y, z = z0, z0
    for _ in range(cell.steps):
        y = (1 - cell.beta) * y + cell.beta * f(z)
        z = (1 - cell.beta) * z + cell.beta * f(y)
    arrived = [cell.grad_y.double(), cell.grad_z.double()]
    grads = torch.autograd.grad([y, z], leaves, arrived)
    return Outcome(y.detach(), z.detach(), *grads)


class _Rounded(torch.autograd.Function):
    """x rounded to a dtype and back; the gradient passes through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(x.dtype, copy=True) if dtype == torch.float32 else x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class _RoundedGrad(torch.autograd.Function):
    """x itself, whose gradient is rounded to a dtype and back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.to(ctx.dtype).to(grad.dtype), None
