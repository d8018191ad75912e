"""Argument checks of the equilibrium cell's ops."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch.autograd import forward_ad

from ...core.checks import (
    BF16,
    F16,
    F32,
    check_beta,
    check_device,
    check_dtype,
    check_number,
    check_shape,
    check_tensors,
    refuse,
)
from . import reference as composite
from .arguments import BACKWARD, FORWARD, Ends, Inputs, Numbers

ACTS = tuple(composite.ACTIVATIONS)
STATES = ("exact", "float32")


def check_forward(inputs: Inputs, numbers: Numbers, op: str = FORWARD) -> None:
    """Raise ValueError or TypeError for arguments other than ``linear_cell_forward`` describes."""
    u, w, z0 = inputs
    _check_not_forward_mode(op)
    check_tensors(op, **inputs._asdict())
    _check_numbers(op, numbers)
    check_dtype(op, "w", w, (BF16, F16, F32))
    if w.dim() != 2 or w.shape[0] != w.shape[1]:
        remedy = "pass the matrix that maps the state to itself; the input's is part of u"
        refuse(ValueError, op, "w", "a square matrix", f"shape {list(w.shape)}", remedy)
    check_dtype(op, "z0", z0, (F32,))
    if z0.dim() != 2 or z0.shape[1] != w.shape[0]:
        expected = f"shape [rows, {w.shape[0]}], with as many columns as w"
        remedy = "flatten all dimensions before the last"
        refuse(ValueError, op, "z0", expected, f"shape {list(z0.shape)}", remedy)
    check_dtype(op, "u", u, (w.dtype,), ", the dtype of w")
    check_shape(op, "u", u, z0, "z0")
    for name, t in (("u", u), ("w", w)):
        check_device(op, name, t, z0, "z0")


def _check_not_forward_mode(op: str) -> None:
    """Raise RuntimeError inside forward mode, where the derivative would silently be zero.

    Under torch.func.jvp, an op does not see the tangents.
    """
    if forward_ad._current_level >= 0:
        raise RuntimeError(
            f"{op}: expected differentiation by backward() or torch.autograd.grad, got a call "
            "inside forward mode (torch.func.jvp, jacfwd, dual_level); call it outside, or use "
            "torch_revdeq.solve with adjoint='backprop' and state=torch.float32"
        )


def _check_numbers(op: str, numbers: Numbers) -> None:
    one_of_names(op, "act", numbers.act, ACTS)
    one_of_names(op, "state", numbers.state, STATES)
    check_beta(op, "beta", numbers.beta, exact=numbers.exact)
    for name, value, least, most in (
        ("steps", numbers.steps, 1, None),
        ("frac_bits", numbers.frac_bits, 0, 30),
    ):
        if isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt)):
            kind = type(value).__name__
            refuse(TypeError, op, name, "a Python integer", kind, f"convert it with int({name})")
        if value < least or (most is not None and value > most):
            up_to = f"from {least} to {most}"
            expected = "an integer " + (up_to if most is not None else f"of at least {least}")
            remedy = "use 20 in most cases" if name == "frac_bits" else "a step evaluates f twice"
            refuse(ValueError, op, name, expected, str(value), remedy)
    if not check_number(op, "tol", numbers.tol) >= 0:
        remedy = "with 0, every row takes every step"
        refuse(ValueError, op, "tol", "a number of at least 0", str(numbers.tol), remedy)


def one_of_names(op: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError unless the value is one of `choices`."""
    if value not in choices:
        expected = "one of " + ", ".join(map(repr, choices))
        remedy = "for another f, use torch_revdeq.solve" if name == "act" else "choose one of them"
        refuse(ValueError, op, name, expected, repr(value), remedy)


def check_backward(
    ends: Ends, inputs: Inputs, numbers: Numbers, shape: tuple[int, ...] | None = None
) -> None:
    """Check against the description of ``linear_cell_backward``; digits must have `shape`."""
    op = BACKWARD
    check_tensors(op, **ends._asdict())
    check_forward(inputs, numbers, op)
    grad_y, grad_z, y, z, digits, taken = ends
    z0, kept = inputs.z0, torch.int32 if numbers.exact else F32
    rows = (("grad_y", grad_y, F32), ("grad_z", grad_z, F32), ("y", y, kept), ("z", z, kept))
    for name, t, dtype in rows:
        check_dtype(op, name, t, (dtype,))
        check_device(op, name, t, z0, "z0")
        check_shape(op, name, t, z0, "z0")
    for name, t, dtype in (("digits", digits, torch.uint8), ("taken", taken, torch.int32)):
        check_dtype(op, name, t, (dtype,))
        check_device(op, name, t, z0, "z0")
    rows_halt = (z0.shape[0],) if numbers.halting else (0,)
    if taken.shape != rows_halt:
        expected = f"shape {list(rows_halt)} for this tol"
        remedy = "pass the taken that linear_cell_forward returned, and the same tol"
        refuse(ValueError, op, "taken", expected, str(list(taken.shape)), remedy)
    if shape is not None and digits.shape != shape:
        expected = f"shape {list(shape)} for these steps and this beta"
        remedy = "pass the digits that linear_cell_forward returned, for the same implementation"
        refuse(ValueError, op, "digits", expected, str(list(digits.shape)), remedy)
