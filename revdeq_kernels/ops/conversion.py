"""Conversion to and from exact states: ``quantize`` and ``dequantize``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..core.checks import (
    EXACT_F_DTYPES,
    F32,
    F64,
    Memory,
    check_dense,
    check_device,
    check_dtype,
    check_flag,
    check_integers,
    check_shape,
    check_tensors,
    given,
    one_of,
    refuse,
)
from ..core.lists import Leaves
from ..core.op import ListOp, Op
from ..core.roles import DENSE, DTYPE, FLAG_, FRAC_BITS, FREE, Argument
from ..exact_numbers import FIXED_MAX, FIXED_MIN, RANGE

# ---- the definition --------------------------------------------------------------------------


def define_quantize(x: Tensor, frac_bits: int, *, flag: Tensor | None = None) -> Tensor:
    """`x` rounded to the grid of 2**-frac_bits, as int32."""
    state = torch.empty_like(x, dtype=torch.int32)
    define_quantize_to(x, frac_bits, state, flag=flag)
    return state


def define_quantize_to(
    x: Tensor, frac_bits: int, out: Tensor, *, flag: Tensor | None = None
) -> None:
    """The same, written to `out`; used for lists."""
    fixed, outside = to_fixed(x, frac_bits)
    if flag is not None:
        flag.bitwise_or_(outside.any().to(torch.int32))
    out.copy_(fixed)


def define_dequantize(state: Tensor, frac_bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values that `state` represents: exact in float64, otherwise rounded via float32."""
    if dtype == torch.float64:
        return state.to(dtype) * 2.0**-frac_bits
    return from_fixed(state, frac_bits).to(dtype)


def to_fixed(f: Tensor, frac_bits: int) -> tuple[Tensor, Tensor]:
    """f 2**k rounded to nearest even (as int64), and a mask of out-of-range values and NaN."""
    v = f.to(torch.float32) * 2.0**frac_bits
    outside = ~(v.abs() < RANGE)
    v = torch.where(v.isnan(), 0.0, v).clamp(FIXED_MIN, FIXED_MAX)
    return v.round().long(), outside


def from_fixed(state: Tensor, frac_bits: int) -> Tensor:
    """The values that a state represents, in float32."""
    return state.to(torch.float32) * 2.0**-frac_bits


# ---- argument checks -------------------------------------------------------------------------


def check_quantize(
    op: str,
    x: Tensor,
    frac_bits: int,
    out: Tensor | None = None,
    *,
    flag: Tensor | None = None,
) -> Memory:
    """Check the arguments of quantize; only the op on lists has `out`, the result."""
    check_tensors(op, x=x, **given(out=out, flag=flag))
    check_integers(op, frac_bits, 0)
    check_dtype(op, "x", x, EXACT_F_DTYPES)
    if out is not None:
        check_dtype(op, "out", out, (torch.int32,))
        check_device(op, "out", out, x, "x")
        check_shape(op, "out", out, x, "x")
        check_dense(op, "out", out)
    if flag is not None:
        check_flag(op, flag, x, "x")
    return [("flag", flag), ("x", x), ("out", out)]


def check_dequantize(
    op: str, state: Tensor, frac_bits: int, dtype: torch.dtype = torch.float32
) -> Memory:
    """Check the arguments of dequantize."""
    check_tensors(op, state=state)
    check_integers(op, frac_bits, 0)
    check_dtype(op, "state", state, (torch.int32,))
    allowed = (F32, F64, *EXACT_F_DTYPES[1:])
    if dtype not in allowed:
        remedy = "choose one of these and convert the result"
        refuse(TypeError, op, "dtype", one_of(allowed), str(dtype), remedy)
    return [("state", state)]


# ---- the ops ---------------------------------------------------------------------------------

_ROUND = "x + (rounded - x).detach(), a straight-through estimator"
_X, _FRAC_BITS = Argument("x", FREE), Argument("frac_bits", FRAC_BITS)
_FLAG = FLAG_._replace(optional=True)

_quantize = Op(
    "quantize",
    (_X, _FRAC_BITS, _FLAG),
    define_quantize,
    check_quantize,
    instead=_ROUND,
    dtypes=[(x, flag) for x in EXACT_F_DTYPES for flag in (None, torch.int32)],
    result=lambda x, *_: torch.empty_like(x, dtype=torch.int32),
    equation="result = round(2^k x)",
    moves="x + result",
    kernels=("quantize_kernel",),
)
_quantize_lists = ListOp(
    _quantize,
    (_X, _FRAC_BITS, Argument("out", DENSE, written=True), _FLAG),
    define_quantize_to,
    dtypes=[(x, torch.int32, flag) for x in EXACT_F_DTYPES for flag in (None, torch.int32)],
)
_dequantize = Op(
    "dequantize",
    (Argument("state", FREE), _FRAC_BITS, Argument("dtype", DTYPE)),
    define_dequantize,
    check_dequantize,
    instead=_ROUND,
    dtypes=[(torch.int32,)],
    result=lambda state, _, dtype: torch.empty_like(state, dtype=dtype),
    equation="result = 2^-k x",
    moves="x + result",
    kernels=("dequantize_kernel",),
)

# ---- the public functions --------------------------------------------------------------------


@overload
def quantize(x: Tensor, frac_bits: int, *, flag: Tensor | None = None) -> Tensor: ...
@overload
def quantize(
    x: Sequence[Tensor], frac_bits: int, *, flag: Tensor | None = None
) -> list[Tensor]: ...
def quantize(
    x: Tensor | Sequence[Tensor], frac_bits: int, *, flag: Tensor | None = None
) -> Tensor | list[Tensor]:
    """Convert to a fixed-point state: x 2**frac_bits, rounded to nearest even, as int32.

    Args:
        x: float32, bfloat16 or float16, any shape and strides.
        frac_bits: the number of fractional bits, 0 to 30.
        flag: as in ``update_exact_``, set by values of x that are out of range or NaN.

    Returns:
        int32, with the shape and order of dimensions of x. NaN becomes 0, and values out of range
        saturate.

    Memory: 4 + sizeof(x) bytes per element. Raises the same errors as ``update_``.
    """
    if isinstance(x, (list, tuple)):
        out = [torch.empty_like(t, dtype=torch.int32) for t in x if isinstance(t, Tensor)]
        _quantize_lists((x, frac_bits, out), flag)
        return out
    if flag is None and isinstance(x, Tensor) and is_compiling():
        # Inductor (torch 2.13) does not support an op that returns a tensor and only writes to an
        # optional argument that is absent.
        flag = torch.zeros(1, dtype=torch.int32, device=x.device)
    return _quantize((x, frac_bits), flag)


def dequantize(state: Leaves, frac_bits: int, dtype: torch.dtype = torch.float32) -> Leaves:
    """Convert a fixed-point state back: the values state / 2**frac_bits.

    Args:
        state: int32, any shape and strides.
        frac_bits: the number of fractional bits, 0 to 30.
        dtype: float64 (exact), float32 (rounded to nearest even), or bfloat16 or float16 (rounded
            from float32, like `cast`).

    Returns:
        A tensor of this dtype, with the shape and order of dimensions of `state`.

    Memory: 4 + sizeof(dtype) bytes per element. Raises the same errors as ``update_``.
    """
    return _dequantize((state, frac_bits, dtype))
