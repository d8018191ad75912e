"""Argument checks of the ops, for the Python backends, fake tensors and error messages.

``csrc/arguments.h`` checks the same, in the same order, for the compiled backends. Each
function takes the op's name and its arguments. The adjoint and the passes have theirs in
``pass_checks.py``, lists of leaves in ``core/lists.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.checks import (
    EXACT_F_DTYPES,
    F32,
    F64,
    F_DTYPES,
    Arguments,
    check_beta,
    check_cast,
    check_dense,
    check_device,
    check_digits,
    check_dtype,
    check_flag,
    check_integers,
    check_overlap,
    check_shape,
    check_tensors,
    given,
    one_of,
    refuse,
)

Check = Callable[..., Arguments]

# ---- float states ----------------------------------------------------------------------------


def half_step(
    op: str, state: Tensor, f: Tensor, beta: float, *, cast: Tensor | None = None
) -> Arguments:
    """Check the arguments of update_ and invert_."""
    return check_overlap(op, float_step(op, "state", state, f, beta, cast))


def float_step(
    op: str, lead: str, state: Tensor, f: Tensor, beta: float | None, cast: Tensor | None
) -> Arguments:
    """Check a half step on a float state, which the op calls `lead`; what may not overlap."""
    check_tensors(op, **{lead: state}, f=f, **given(cast=cast))
    if beta is not None:
        check_beta(op, "beta", beta, exact=False)
    _float_pair(op, lead, state, f)
    check_dense(op, lead, state)
    if cast is not None:
        check_cast(op, cast, state, f, lead)
    return [(lead, state, True), ("f", f, False), ("cast", cast, True)]


def _float_pair(op: str, lead: str, state: Tensor, f: Tensor) -> None:
    check_dtype(op, lead, state, tuple(F_DTYPES))
    check_dtype(op, "f", f, F_DTYPES[state.dtype], f" for a state of {state.dtype}")
    check_device(op, "f", f, state, lead)
    check_shape(op, "f", f, state, lead)


def channel_step(
    op: str, state: Tensor, f: Tensor, beta: Tensor, *, cast: Tensor | None = None
) -> Arguments:
    """Check the arguments of update_ and invert_ where beta is a tensor."""
    check_tensors(op, beta=beta)
    memory = float_step(op, "state", state, f, None, cast)
    real = F64 if state.dtype == F64 else F32
    check_dtype(op, "beta", beta, (real,), f" for a state of {state.dtype}")
    check_device(op, "beta", beta, state, "state")
    if channel_dimension(state, beta) is None:
        expected = "one element, or one for each place along one dimension of state"
        got = f"shape {list(beta.shape)} for a state of shape {list(state.shape)}"
        remedy = "give it 1 in the other dimensions, such as beta.view(-1, 1, 1)"
        refuse(ValueError, op, "beta", expected, got, remedy)
    return check_overlap(op, [*memory, ("beta", beta, False)])


def channel_dimension(state: Tensor, beta: Tensor) -> int | None:
    """The dimension of `state` along which `beta` varies; -1 for none, None if it does not fit."""
    if beta.numel() == 1:
        return -1
    if beta.dim() > state.dim() or beta.numel() == 0:
        return None
    found = -1
    for dimension, size in enumerate(beta.shape, state.dim() - beta.dim()):
        if size == 1:
            continue
        if size != state.shape[dimension] or found >= 0:
            return None
        found = dimension
    return found


# ---- exact states ----------------------------------------------------------------------------


def update_exact(
    op: str,
    state: Tensor,
    digits: Tensor,
    flag: Tensor,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    *,
    cast: Tensor | None = None,
) -> Arguments:
    """Check the arguments of update_exact_."""
    check_tensors(op, flag=flag)
    memory = exact_step(op, "state", state, digits, flag, f, beta, frac_bits, tie, cast)
    return check_overlap(op, memory)


def invert_exact(
    op: str,
    state: Tensor,
    digits: Tensor,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    *,
    cast: Tensor | None = None,
) -> Arguments:
    """Check the arguments of invert_exact_, which raises no flag and only reads the digits."""
    memory = exact_step(op, "state", state, digits, None, f, beta, frac_bits, tie, cast)
    return check_overlap(op, memory)


def exact_step(
    op: str,
    lead: str,
    state: Tensor,
    digits: Tensor,
    flag: Tensor | None,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    cast: Tensor | None,
) -> Arguments:
    """Check a half step on an exact state, which the op calls `lead`; what may not overlap."""
    check_tensors(op, **{lead: state}, digits=digits, f=f, **given(flag=flag, cast=cast))
    check_beta(op, "beta", beta, exact=True)
    check_integers(op, frac_bits, tie)
    check_dtype(op, lead, state, (torch.int32,))
    check_dtype(op, "f", f, EXACT_F_DTYPES, " for an exact state")
    check_device(op, "f", f, state, lead)
    check_shape(op, "f", f, state, lead)
    check_dense(op, lead, state)
    check_digits(op, digits, state, lead, beta)
    if flag is not None:
        check_flag(op, flag, state, lead)
    if cast is not None:
        check_cast(op, cast, state, f, lead)
    flagged = flag is not None
    return [
        (lead, state, True),
        ("f", f, False),
        ("digits", digits, flagged),
        ("flag", flag, True),
        ("cast", cast, True),
    ]


# ---- conversions and the residual ------------------------------------------------------------


def quantize(
    op: str,
    x: Tensor,
    frac_bits: int,
    out: Tensor | None = None,
    *,
    flag: Tensor | None = None,
) -> Arguments:
    """Check the arguments of quantize; `out` is the result, where lists are given one."""
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
    return check_overlap(op, [("flag", flag, True), ("x", x, False), ("out", out, True)])


def dequantize(
    op: str, state: Tensor, frac_bits: int, dtype: torch.dtype = torch.float32
) -> Arguments:
    """Check the arguments of dequantize."""
    check_tensors(op, state=state)
    check_integers(op, frac_bits, 0)
    check_dtype(op, "state", state, (torch.int32,))
    allowed = (F32, F64, *EXACT_F_DTYPES[1:])
    if dtype not in allowed:
        remedy = "ask for one of these and convert"
        refuse(TypeError, op, "dtype", one_of(allowed), str(dtype), remedy)
    return [("state", state, False)]


def residual(op: str, z: Tensor, f: Tensor) -> Arguments:
    """Check the arguments of residual."""
    check_tensors(op, z=z, f=f)
    _float_pair(op, "z", z, f)
    check_dense(op, "z", z)
    return [("z", z, False), ("f", f, False)]
