"""The norms that a stopping test compares: ``residual``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.checks import Memory, check_dense, check_tensors
from ..core.memory import memory_order
from ..core.op import ListOp, Op
from ..core.roles import DENSE, FLOAT_PAIRS, FREE, Argument
from .half_step import check_float_pair

# ---- the definition --------------------------------------------------------------------------
# Elements count in memory order, 256 to a row. Each column of 16 rows is summed from the first row
# to the last, then the right half of the columns joins the left until one sum is left; the sums of
# all pieces are summed once more in the same way, as many rows as there are. So the order, and with
# it every bit, follows from the number of elements alone.

COLUMNS, ROWS = 256, 16


def define_residual(z: Tensor, f: Tensor) -> Tensor:
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


# ---- what is asked of the arguments ----------------------------------------------------------


def check_residual(op: str, z: Tensor, f: Tensor) -> Memory:
    """Check the arguments of residual."""
    check_tensors(op, z=z, f=f)
    check_float_pair(op, "z", z, f)
    check_dense(op, "z", z)
    return [("z", z), ("f", f)]


# ---- the op ----------------------------------------------------------------------------------

_residual = Op(
    "residual",
    (Argument("z", DENSE), Argument("f", FREE)),
    define_residual,
    check_residual,
    instead="(z - f).norm() and f.norm()",
    dtypes=FLOAT_PAIRS,
    result=lambda z, _: z.new_empty(2, dtype=torch.float64),
    equation="result = [norm(z - f), norm(f)]",
    kernels=("residual_kernel", "norms_kernel"),
)
ListOp(_residual, join=torch.stack)

# ---- the public function ---------------------------------------------------------------------


def residual(z: Tensor | Sequence[Tensor], f: Tensor | Sequence[Tensor]) -> Tensor:
    """The norms that a stopping test compares: of z - f and of f, over all elements.

    Args:
        z: what f read, as it was given to f. float32, float64, bfloat16 or float16, dense.
        f: what f returned: the same shape, any strides, a dtype that ``update_`` takes with z's.

    Returns:
        float64, ``[norm(z - f), norm(f)]``, on z's device: nothing waits for it. For lists one row
        for each leaf.

    Everything is computed in float64, in an order that follows from the number of elements alone:
    the same bits on every backend and number of threads. Overflow gives inf, NaN gives NaN.

    Memory: sizeof(z) + sizeof(f) bytes per element. Errors as for ``update_``.

    Source: arXiv 2509.12917, the stopping criterion of its solver.
    """
    return _residual((z, f))
