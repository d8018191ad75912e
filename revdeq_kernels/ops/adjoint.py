"""The backward pass of a half step: ``adjoint_``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.checks import (
    ADJOINT_DTYPES,
    F32,
    F64,
    Memory,
    check_dense,
    check_device,
    check_dtype,
    check_finite,
    check_shape,
    check_strides,
    check_tensors,
)
from ..core.lists import Leaves
from ..core.op import Op
from ..core.roles import DENSE, FACTOR, FREE, LIKE, Argument, vjps

# ---- the definition --------------------------------------------------------------------------


def define_adjoint(grad: Tensor, vjp: Tensor, scale: float, beta: float, seed: Tensor) -> None:
    """grad <- scale grad + vjp; seed <- beta grad."""
    factor, beta_ = (torch.tensor(x, dtype=grad.dtype, device=grad.device) for x in (scale, beta))
    grad.copy_(factor * grad + vjp.to(grad.dtype))
    seed.copy_(beta_ * grad)


# ---- argument checks -------------------------------------------------------------------------


def check_adjoint(
    op: str, grad: Tensor, vjp: Tensor, scale: float, beta: float, seed: Tensor
) -> Memory:
    """Check the arguments of adjoint_."""
    check_tensors(op, grad=grad, vjp=vjp, seed=seed)
    check_finite(op, "scale", scale)
    check_finite(op, "beta", beta)
    _adjoint_dtypes(op, grad, vjp, seed)
    return check_carried(op, "grad", grad, None, vjp, seed)


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


def check_carried(
    op: str, lead: str, grad: Tensor, other: Tensor | None, vjp: Tensor, seed: Tensor | None
) -> Memory:
    """Check the gradient that is carried from step to step, and the tensors laid out like it."""
    check_dense(op, lead, grad)
    if other is not None:
        _like(op, "grad_y", other, grad, lead)
    check_device(op, "vjp", vjp, grad, lead)
    check_shape(op, "vjp", vjp, grad, lead)
    if seed is not None:
        _like(op, "seed", seed, grad, lead)
    return [(lead, grad), ("grad_y", other), ("vjp", vjp), ("seed", seed)]


def _like(op: str, name: str, t: Tensor, like: Tensor, like_name: str) -> None:
    check_device(op, name, t, like, like_name)
    check_shape(op, name, t, like, like_name)
    check_strides(op, name, t, like, like_name)


# ---- the op ----------------------------------------------------------------------------------

_adjoint = Op(
    "adjoint_",
    (
        Argument("grad", DENSE, written=True),
        Argument("vjp", FREE),
        Argument("scale", FACTOR),
        Argument("beta", FACTOR),
        Argument("seed", LIKE, written=True),
    ),
    define_adjoint,
    check_adjoint,
    instead="scale * grad + vjp",
    dtypes=[
        (grad, vjp, seed)
        for grad, seeds in ADJOINT_DTYPES.items()
        for seed in seeds
        for vjp in vjps(seed)
    ],
    equation="grad <- scale grad + vjp; seed <- beta grad",
    kernels=("adjoint_kernel",),
)

# ---- the public function ---------------------------------------------------------------------


def adjoint_(grad: Leaves, vjp: Leaves, scale: float, beta: float, seed: Leaves) -> Leaves:
    """One half step of the backward pass, in place: grad <- scale grad + vjp; seed <- beta grad.

    `grad` is the gradient of one of the states, carried from step to step; `vjp` is the
    vector-Jacobian product of f that is added to it; `seed` receives the cotangent for the next
    evaluation of f.

    Args:
        grad: float32, or float64 if f is float64. Any shape, dense, dimensions in any order.
            Overwritten.
        vjp: the shape of grad, any strides. The dtype of `seed`, or float32 if f reads a float32
            state and rounds it itself (autocast).
        scale: the factor of grad: 1 - beta, or 1. A Python number.
        beta: the factor of the seed. A Python number.
        seed: the shape and strides of grad, the dtype of f. Overwritten.

    Returns:
        `grad`.

    Each product and the sum are rounded once, in grad's dtype, so the result is bitwise identical
    to the same sequence of PyTorch operations. Memory: 2 sizeof(grad) + sizeof(vjp) + sizeof(seed)
    bytes per element, 12 for bfloat16 f. Raises the same errors as ``update_``.

    Source: arXiv 2509.12917, the adjoint of the reversible solver's step.
    """
    _adjoint((grad, vjp, scale, beta, seed))
    return grad
