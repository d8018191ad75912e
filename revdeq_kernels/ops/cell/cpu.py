"""The equilibrium cell in C++ for CPUs, one call for all steps: ``csrc/cpu/cell_ops.cpp``.

The arguments are those of ``reference.py``, already checked and contiguous. The two C++ ops write
to tensors that are allocated here. They are private to this module, and only check what would
access memory out of bounds.
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
"""The activations, in the order of their numbers in C++."""


def digits_shape(z0: Tensor, numbers: Numbers) -> tuple[int, ...]:
    """One plane per half step, y before z; each byte holds one digit of each of several rows."""
    rows = -(-z0.shape[0] // contraction(numbers.beta).digits_per_byte)
    return 2 * numbers.steps, rows, z0.shape[1]


def forward(inputs: Inputs, numbers: Numbers, *, keeps: bool = True) -> Solved:
    """See ``linear_cell.linear_cell_forward``.

    Without `keeps`, fixed and digits are empty, and no backward pass is possible.
    """
    z0, keeps = inputs.z0, keeps and numbers.exact
    rows = z0.shape[0] if numbers.halting else 0
    new = z0.new_zeros if numbers.halting else z0.new_empty  # some rows may not be written
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
    """See ``linear_cell.linear_cell_backward``. grad_z0 is empty unless it is wanted."""
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
    """The numbers in the form of the C++ schemas."""
    beta, steps, act, _, frac_bits, tol = numbers
    return beta, steps, ACTS[act], numbers.exact, frac_bits, tol
