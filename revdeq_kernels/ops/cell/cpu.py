"""The equilibrium cell in C++ for CPUs, one call for all steps: ``csrc/cpu/cell_ops.cpp``.

The arguments are those of ``reference.py``, checked and contiguous. The two ops behind this module
write into tensors that are made here; they belong to it, and check what would reach memory alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.checks import F32
from ...core.op import NAMESPACE
from ...exact_numbers import contraction
from .arguments import Ends, Gradients, Inputs, Numbers, Solved

ACTS = {"tanh": 0, "relu": 1, "gelu": 2, "silu": 3, "gelu_tanh": 4}
"""The activations, as C++ numbers them."""


def digits_shape(z0: Tensor, numbers: Numbers) -> tuple[int, ...]:
    """A plane for each half step, y's before z's; a byte holds a digit of each of several rows."""
    rows = -(-z0.shape[0] // contraction(numbers.beta).digits_per_byte)
    return 2 * numbers.steps, rows, z0.shape[1]


def forward(inputs: Inputs, numbers: Numbers, *, keeps: bool = True) -> Solved:
    """See ``linear_cell.linear_cell_forward``.

    Without `keeps` there can be no backward pass: fixed and digits are empty.
    """
    z0, keeps = inputs.z0, keeps and numbers.exact
    rows = z0.shape[0] if numbers.halting else 0
    new = z0.new_zeros if numbers.halting else z0.new_empty  # some may stay unwritten
    out = Solved(
        y=torch.empty_like(z0),
        z=torch.empty_like(z0),
        fixed=z0.new_empty((2, *z0.shape) if keeps else 0, dtype=torch.int32),
        digits=new(digits_shape(z0, numbers) if keeps else 0, dtype=torch.uint8),
        flag=z0.new_empty(1, dtype=torch.int32),
        taken=z0.new_empty(rows, dtype=torch.int32),
        residual=z0.new_empty(rows),
    )
    _op("_linear_cell_forward_")(*inputs, *_plain(numbers), *out)
    return out


def backward(ends: Ends, inputs: Inputs, numbers: Numbers, *, wants_z0: bool = True) -> Gradients:
    """See ``linear_cell.linear_cell_backward``. grad_z0 is empty where nobody wants it."""
    u, w, z0 = inputs
    out = Gradients(
        grad_u=torch.empty_like(u),
        grad_w=torch.empty_like(w, dtype=F32),
        grad_z0=torch.empty_like(z0) if wants_z0 else z0.new_empty(0),
        distance=z0.new_empty(1),
        lost=z0.new_empty(1, dtype=torch.int32),
    )
    _op("_linear_cell_backward_")(*ends, *inputs, *_plain(numbers), *out)
    return out


def _op(name: str) -> Any:
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _plain(numbers: Numbers) -> tuple[Any, ...]:
    """The numbers as the schemas in C++ have them."""
    beta, steps, act, _, frac_bits, tol = numbers
    return beta, steps, ACTS[act], numbers.exact, frac_bits, tol
