"""The norms for a stopping criterion: ``residual``."""

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
# Elements are taken in memory order, 256 per row. In each piece of 16 rows, the columns are summed
# from the first row to the last; then the right half of the columns is added to the left half until
# one sum remains. The sums of all pieces are added up in the same way, with any number of rows. The
# order of summation, and therefore every bit, depends only on the number of elements.

COLUMNS, ROWS = 256, 16


def define_residual(z: Tensor, f: Tensor) -> Tensor:
    """The norms of z - f and of f, in float64."""
    laid_out = torch.empty_like(z, dtype=f.dtype).copy_(f)
    v = memory_order(laid_out).double()
    difference = memory_order(z).double() - v
    squares = torch.stack([_sum(difference * difference), _sum(v * v)])
    if squares.is_meta:
        return squares
    # torch's square root is off by one unit in the last place on some CPUs (MKL).
    return torch.tensor([math.sqrt(x) for x in squares.tolist()], dtype=v.dtype, device=v.device)


def _sum(x: Tensor) -> Tensor:
    return _halve(_rows(_halve(_rows(x, ROWS)), -1))[0]


def _rows(x: Tensor, count: int) -> Tensor:
    """Column sums over each `count` rows, or over all rows if -1; padded with zeros."""
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


# ---- argument checks -------------------------------------------------------------------------


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
    """The norms for a stopping criterion: of z - f and of f, over all elements.

    Args:
        z: the input of f. float32, float64, bfloat16 or float16, dense.
        f: the output of f: the same shape, any strides, a dtype that ``update_`` supports with z.

    Returns:
        float64, ``[norm(z - f), norm(f)]``, on the device of z, without synchronization. For lists,
        one row per leaf.

    Computed in float64, in an order that depends only on the number of elements: the same bits on
    every backend and for any number of threads. Overflow gives inf, NaN gives NaN.

    Memory: sizeof(z) + sizeof(f) bytes per element. Raises the same errors as ``update_``.

    Source: arXiv 2509.12917, the stopping criterion of its solver.
    """
    return _residual((z, f))
