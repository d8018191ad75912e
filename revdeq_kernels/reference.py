"""The definition of every op, in plain PyTorch: what each kernel must return, bit for bit.

It is written to be read, runs on any device, and allocates freely. The arguments are those of the
functions of the same names in ``ops/``, which document them; they are expected to be checked.
The float equations are those of arXiv 2509.12917; the exact form is this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .core.lists import leaf_of
from .exact_numbers import contraction, effective_beta
from .ops.exact_step import (
    dequantize,
    invert_exact_,
    memory_order,
    quantize,
    quantize_to,
    update_exact_,
)

__all__ = [
    "adjoint_",
    "dequantize",
    "invert_",
    "invert_exact_",
    "invert_y_adjoint_z0_",
    "invert_y_adjoint_z0_exact_",
    "invert_y_adjoint_z_",
    "invert_y_adjoint_z_exact_",
    "invert_z_adjoint_y_",
    "invert_z_adjoint_y_exact_",
    "inverted",
    "memory_order",
    "on_lists",
    "quantize",
    "quantize_to",
    "residual",
    "update_",
    "update_exact_",
    "updated",
]

# ---- lists of leaves -------------------------------------------------------------------------


def on_lists(name: str) -> Callable[..., Any]:
    """The op `name` with lists in place of its tensors: one leaf after the other."""
    function = quantize_to if name == "quantize" else globals()[name]

    def of_lists(*args: Any, **kw: Any) -> Any:
        leaves = range(len(args[0]))
        results: list[Any] = [function(*leaf_of(args, k), **leaf_of(kw, k)) for k in leaves]
        if name == "residual":
            return torch.stack(results)
        return None if results[0] is None else results

    return of_lists


# ---- float states ----------------------------------------------------------------------------


def update_(state: Tensor, f: Tensor, beta: float | Tensor, *, cast: Tensor | None = None) -> None:
    """state <- (1 - beta) state + beta f, in float32 (float64 for a float64 state)."""
    _write(state, updated(state, f, beta), cast)


def updated(state: Tensor, f: Tensor, beta: float | Tensor) -> Tensor:
    """What ``update_`` writes, before it is rounded to the state's dtype. Differentiable."""
    keep, beta_, y, f = _operands(state, f, beta)
    return keep * y + beta_ * f


def invert_(state: Tensor, f: Tensor, beta: float | Tensor, *, cast: Tensor | None = None) -> None:
    """state <- (state - beta f) / (1 - beta)."""
    _write(state, inverted(state, f, beta), cast)


def inverted(state: Tensor, f: Tensor, beta: float | Tensor) -> Tensor:
    """What ``invert_`` writes, before it is rounded to the state's dtype. Differentiable."""
    keep, beta_, y, f = _operands(state, f, beta)
    return (y - beta_ * f) / keep


def _operands(
    state: Tensor, f: Tensor, beta: float | Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compute = torch.float64 if state.dtype == torch.float64 else torch.float32
    if isinstance(beta, Tensor):
        beta = beta.reshape(()) if beta.numel() == 1 else beta
        return 1.0 - beta, beta, state.to(compute), f.to(compute)
    # Tensors, not Python numbers: torch divides by a number on a GPU by way of its reciprocal.
    keep, beta_ = (torch.tensor(x, dtype=compute, device=state.device) for x in (1.0 - beta, beta))
    return keep, beta_, state.to(compute), f.to(compute)


def _write(state: Tensor, new: Tensor, cast: Tensor | None) -> None:
    state.copy_(new)
    if cast is not None:
        cast.copy_(state)


# ---- the adjoint -----------------------------------------------------------------------------


def adjoint_(grad: Tensor, vjp: Tensor, scale: float, beta: float, seed: Tensor) -> None:
    """grad <- scale grad + vjp; seed <- beta grad."""
    factor, beta_ = (torch.tensor(x, dtype=grad.dtype, device=grad.device) for x in (scale, beta))
    grad.copy_(factor * grad + vjp.to(grad.dtype))
    seed.copy_(beta_ * grad)


# ---- the passes of a backward step -----------------------------------------------------------
# Each is an inverse half step and the adjoint of the other state, and no more than their sequence.


def invert_z_adjoint_y_(
    z: Tensor,
    f: Tensor,
    beta: float,
    grad_y: Tensor,
    vjp: Tensor,
    seed: Tensor,
    *,
    cast: Tensor | None = None,
) -> None:
    """z one half step back; grad_y <- grad_y + vjp; seed <- beta grad_y; grad_y <- (1-beta) it."""
    invert_(z, f, beta, cast=cast)
    _carry_y(grad_y, vjp, 1.0 - beta, beta, seed)


def invert_y_adjoint_z_(
    y: Tensor,
    f: Tensor,
    beta: float,
    grad_z: Tensor,
    vjp: Tensor,
    next_beta: float,
    seed: Tensor,
    *,
    cast: Tensor | None = None,
) -> None:
    """y one half step back; grad_z <- (1-beta) grad_z + vjp; seed <- next_beta grad_z."""
    invert_(y, f, beta, cast=cast)
    adjoint_(grad_z, vjp, 1.0 - beta, next_beta, seed)


def invert_y_adjoint_z0_(
    y: Tensor, f: Tensor, beta: float, grad_z: Tensor, grad_y: Tensor, vjp: Tensor
) -> None:
    """y back to the start; grad_z <- ((1-beta) grad_z + grad_y) + vjp."""
    invert_(y, f, beta)
    _carry_z0(grad_z, grad_y, vjp, 1.0 - beta)


def invert_z_adjoint_y_exact_(
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
) -> None:
    """``invert_z_adjoint_y_`` on an exact state, whose beta is the effective one."""
    invert_exact_(z, digits, f, beta, frac_bits, tie, cast=cast)
    _carry_y(grad_y, vjp, contraction(beta).one_minus_beta, effective_beta(beta), seed)


def invert_y_adjoint_z_exact_(
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
) -> None:
    """``invert_y_adjoint_z_`` on an exact state; both betas are the effective ones."""
    invert_exact_(y, digits, f, beta, frac_bits, tie, cast=cast)
    adjoint_(grad_z, vjp, contraction(beta).one_minus_beta, effective_beta(next_beta), seed)


def invert_y_adjoint_z0_exact_(
    y: Tensor,
    digits: Tensor,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    grad_z: Tensor,
    grad_y: Tensor,
    vjp: Tensor,
) -> None:
    """``invert_y_adjoint_z0_`` on an exact state, whose beta is the effective one."""
    invert_exact_(y, digits, f, beta, frac_bits, tie)
    _carry_z0(grad_z, grad_y, vjp, contraction(beta).one_minus_beta)


def _carry_y(grad: Tensor, vjp: Tensor, keep: float, beta: float, seed: Tensor) -> None:
    adjoint_(grad, vjp, 1.0, beta, seed)
    grad.mul_(torch.tensor(keep, dtype=grad.dtype, device=grad.device))


def _carry_z0(grad: Tensor, other: Tensor, vjp: Tensor, keep: float) -> None:
    factor = torch.tensor(keep, dtype=grad.dtype, device=grad.device)
    grad.copy_((factor * grad + other) + vjp.to(grad.dtype))


# ---- the residual ----------------------------------------------------------------------------
# Elements count in memory order, 256 to a row. Each column of 16 rows is summed from the first row
# to the last, then the right half of the columns joins the left until one sum is left; the sums of
# all pieces are summed once more in the same way, as many rows as there are. So the order, and with
# it every bit, follows from the number of elements alone.

COLUMNS, ROWS = 256, 16


def residual(z: Tensor, f: Tensor) -> Tensor:
    """The norms of z - f and of f, in float64."""
    laid_out = torch.empty_like(z, dtype=f.dtype).copy_(f)
    v = memory_order(laid_out).double()
    difference = memory_order(z).double() - v
    squares = torch.stack([_sum(difference * difference), _sum(v * v)])
    if squares.is_meta:
        return squares
    # torch's own square root is off by a unit in the last place on some CPUs (MKL).
    return torch.tensor([math.sqrt(x) for x in squares.tolist()], dtype=v.dtype, device=v.device)


def _sum(x: Tensor) -> Tensor:
    return _halve(_rows(_halve(_rows(x, ROWS)), -1))[0]


def _rows(x: Tensor, count: int) -> Tensor:
    """The columns' sums, of every `count` rows; of all rows if it is -1. Zeros fill the last."""
    if count < 0:
        count = max(1, -(-x.numel() // COLUMNS))
    padded = x.new_zeros(-(-max(1, x.numel()) // (count * COLUMNS)) * count * COLUMNS)
    padded[: x.numel()] = x
    pieces = padded.view(-1, count, COLUMNS)
    total = pieces[:, 0].clone()
    for row in range(1, count):
        total += pieces[:, row]
    return total


def _halve(columns: Tensor) -> Tensor:
    while columns.shape[1] > 1:
        half = columns.shape[1] // 2
        columns = columns[:, :half] + columns[:, half:]
    return columns[:, 0]
