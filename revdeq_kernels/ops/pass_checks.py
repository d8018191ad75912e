"""Argument checks of adjoint_ and of the passes of a backward step, as in ``checks.py``."""

from __future__ import annotations

from torch import Tensor

from ..core.checks import (
    ADJOINT_DTYPES,
    F32,
    F64,
    Arguments,
    check_beta,
    check_dense,
    check_device,
    check_dtype,
    check_finite,
    check_overlap,
    check_shape,
    check_strides,
    check_tensors,
    given,
)
from .checks import exact_step, float_step

# ---- the adjoint -----------------------------------------------------------------------------


def adjoint(
    op: str, grad: Tensor, vjp: Tensor, scale: float, beta: float, seed: Tensor
) -> Arguments:
    """Check the arguments of adjoint_."""
    check_tensors(op, grad=grad, vjp=vjp, seed=seed)
    check_finite(op, "scale", scale)
    check_finite(op, "beta", beta)
    _adjoint_dtypes(op, grad, vjp, seed)
    return check_overlap(op, _carried(op, "grad", grad, None, vjp, seed))


def _adjoint_dtypes(op: str, grad: Tensor, vjp: Tensor, seed: Tensor) -> None:
    check_dtype(op, "grad", grad, tuple(ADJOINT_DTYPES))
    why = f" for a grad of {grad.dtype}"
    if grad.dtype == F64:
        check_dtype(op, "vjp", vjp, (F64,), why)
        check_dtype(op, "seed", seed, (F64,), why)
        return
    check_dtype(op, "seed", seed, ADJOINT_DTYPES[F32], why)
    if seed.dtype == F32:
        check_dtype(op, "vjp", vjp, (F32,), ", the dtype of seed")
    else:
        check_dtype(op, "vjp", vjp, (seed.dtype, F32), ", the dtype of seed or float32")


def _carried(
    op: str, lead: str, grad: Tensor, other: Tensor | None, vjp: Tensor, seed: Tensor | None
) -> Arguments:
    """The gradient that a step carries, and what lies in memory as it does."""
    check_dense(op, lead, grad)
    if other is not None:
        _like(op, "grad_y", other, grad, lead)
    check_device(op, "vjp", vjp, grad, lead)
    check_shape(op, "vjp", vjp, grad, lead)
    if seed is not None:
        _like(op, "seed", seed, grad, lead)
    return [(lead, grad, True), ("grad_y", other, False), ("vjp", vjp, False), ("seed", seed, True)]


def _like(op: str, name: str, t: Tensor, like: Tensor, like_name: str) -> None:
    check_device(op, name, t, like, like_name)
    check_shape(op, name, t, like, like_name)
    check_strides(op, name, t, like, like_name)


# ---- the passes of a backward step -----------------------------------------------------------


def carry_y(
    op: str,
    z: Tensor,
    f: Tensor,
    beta: float,
    grad_y: Tensor,
    vjp: Tensor,
    seed: Tensor,
    *,
    cast: Tensor | None = None,
) -> Arguments:
    """Check the arguments of invert_z_adjoint_y_."""
    memory = float_step(op, "z", z, f, beta, cast)
    return _pass(op, memory, f, "grad_y", grad_y, None, vjp, seed)


def carry_z(
    op: str,
    y: Tensor,
    f: Tensor,
    beta: float,
    grad_z: Tensor,
    vjp: Tensor,
    next_beta: float,
    seed: Tensor,
    *,
    cast: Tensor | None = None,
) -> Arguments:
    """Check the arguments of invert_y_adjoint_z_."""
    memory = float_step(op, "y", y, f, beta, cast)
    check_beta(op, "next_beta", next_beta, exact=False)
    return _pass(op, memory, f, "grad_z", grad_z, None, vjp, seed)


def carry_z0(
    op: str, y: Tensor, f: Tensor, beta: float, grad_z: Tensor, grad_y: Tensor, vjp: Tensor
) -> Arguments:
    """Check the arguments of invert_y_adjoint_z0_."""
    memory = float_step(op, "y", y, f, beta, None)
    return _pass(op, memory, f, "grad_z", grad_z, grad_y, vjp, None)


def carry_y_exact(
    op: str,
    z: Tensor,
    digits: Tensor,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    grad_y: Tensor,
    vjp: Tensor,
    seed: Tensor,
    *,
    cast: Tensor | None = None,
) -> Arguments:
    """Check the arguments of invert_z_adjoint_y_exact_."""
    memory = exact_step(op, "z", z, digits, None, f, beta, frac_bits, tie, cast)
    return _pass(op, memory, f, "grad_y", grad_y, None, vjp, seed)


def carry_z_exact(
    op: str,
    y: Tensor,
    digits: Tensor,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    grad_z: Tensor,
    vjp: Tensor,
    next_beta: float,
    seed: Tensor,
    *,
    cast: Tensor | None = None,
) -> Arguments:
    """Check the arguments of invert_y_adjoint_z_exact_."""
    memory = exact_step(op, "y", y, digits, None, f, beta, frac_bits, tie, cast)
    check_beta(op, "next_beta", next_beta, exact=True)
    return _pass(op, memory, f, "grad_z", grad_z, None, vjp, seed)


def carry_z0_exact(
    op: str,
    y: Tensor,
    digits: Tensor,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    grad_z: Tensor,
    grad_y: Tensor,
    vjp: Tensor,
) -> Arguments:
    """Check the arguments of invert_y_adjoint_z0_exact_."""
    memory = exact_step(op, "y", y, digits, None, f, beta, frac_bits, tie, None)
    return _pass(op, memory, f, "grad_z", grad_z, grad_y, vjp, None)


def _pass(
    op: str,
    memory: Arguments,
    f: Tensor,
    lead: str,
    grad: Tensor,
    other: Tensor | None,
    vjp: Tensor,
    seed: Tensor | None,
) -> Arguments:
    """The part of a pass that carries a gradient; `memory` is that of the inverse."""
    check_tensors(op, **{lead: grad}, **given(grad_y=other), vjp=vjp, **given(seed=seed))
    real = F64 if f.dtype == F64 else F32
    check_dtype(op, lead, grad, (real,), f" for an f of {f.dtype}")
    if other is not None:
        check_dtype(op, "grad_y", other, (real,), f" for an f of {f.dtype}")
    if f.dtype == real:
        check_dtype(op, "vjp", vjp, (real,), ", the dtype of f")
    else:
        check_dtype(op, "vjp", vjp, (f.dtype, F32), ", the dtype of f or float32")
    if seed is not None:
        check_dtype(op, "seed", seed, (f.dtype,), ", the dtype of f")
    check_device(op, lead, grad, f, "f")
    check_shape(op, lead, grad, f, "f")
    return check_overlap(op, [*memory, *_carried(op, lead, grad, other, vjp, seed)])
