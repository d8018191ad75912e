"""Argument checks of the ops, for the Python backends, fake tensors and error messages.

``csrc/arguments.h`` checks the same, in the same words and order, for the compiled backends. Each
function takes the op's name and its arguments; ``check_leaves`` does it for lists of leaves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .conditions import (
    ADJOINT_DTYPES,
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
    check_finite,
    check_flag,
    check_integers,
    check_overlap,
    check_shape,
    check_strides,
    check_tensors,
    given,
    meet,
    one_of,
    refuse,
    refuse_overlap,
)

Check = Callable[..., Arguments]

# ---- float states ----------------------------------------------------------------------------


def half_step(
    op: str, state: Tensor, f: Tensor, beta: float, *, cast: Tensor | None = None
) -> Arguments:
    """Check the arguments of update_ and invert_."""
    return check_overlap(op, _half_step(op, "state", state, f, beta, cast))


def _half_step(
    op: str, lead: str, state: Tensor, f: Tensor, beta: float | None, cast: Tensor | None
) -> Arguments:
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
    memory = _half_step(op, "state", state, f, None, cast)
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
    memory = _exact(op, "state", state, digits, flag, f, beta, frac_bits, tie, cast)
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
    memory = _exact(op, "state", state, digits, None, f, beta, frac_bits, tie, cast)
    return check_overlap(op, memory)


def _exact(
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
    memory = _half_step(op, "z", z, f, beta, cast)
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
    memory = _half_step(op, "y", y, f, beta, cast)
    check_beta(op, "next_beta", next_beta, exact=False)
    return _pass(op, memory, f, "grad_z", grad_z, None, vjp, seed)


def carry_z0(
    op: str, y: Tensor, f: Tensor, beta: float, grad_z: Tensor, grad_y: Tensor, vjp: Tensor
) -> Arguments:
    """Check the arguments of invert_y_adjoint_z0_."""
    memory = _half_step(op, "y", y, f, beta, None)
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
    memory = _exact(op, "z", z, digits, None, f, beta, frac_bits, tie, cast)
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
    memory = _exact(op, "y", y, digits, None, f, beta, frac_bits, tie, cast)
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
    memory = _exact(op, "y", y, digits, None, f, beta, frac_bits, tie, None)
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


# ---- lists of leaves -------------------------------------------------------------------------

SHARED = ("flag", "beta", "next_beta", "scale", "frac_bits", "tie", "dtype")
"""The arguments of which lists of leaves have one for all."""


def check_leaves(check: Check, op: str, *args: Any, **kw: Any) -> None:
    """Check the arguments of an op that takes lists: how many, each leaf by itself, and memory."""
    names = list(inspect.signature(check).parameters)[1:]
    named = dict(zip(names, args, strict=False)) | kw
    named = {name: value for name, value in named.items() if value is not None}
    _check_counts(op, named)
    memories: list[Arguments] = []
    for k in range(len(named[names[0]])):
        label = f"{op}: leaf {k}"
        memories.append(check(label, *leaf_of(args, k), **leaf_of(kw, k)))
        _check_same_device(label, names[0], named[names[0]][k], named[names[0]][0])
    _check_overlap_of_leaves(op, memories)


def leaf_of(values: Any, k: int) -> Any:
    """The values (a tuple, or a dict) with every list replaced by its element `k`."""
    if isinstance(values, dict):
        return {name: leaf_of((value,), k)[0] for name, value in values.items()}
    return tuple(value[k] if isinstance(value, (list, tuple)) else value for value in values)


def _check_counts(op: str, named: dict[str, Any]) -> None:
    lists = {name: value for name, value in named.items() if name not in SHARED}
    lead = next(iter(lists))
    for name, value in named.items():
        if name in SHARED and isinstance(value, (list, tuple)):
            remedy = "give one, or call the op leaf by leaf"
            refuse(TypeError, op, name, "one for all leaves", type(value).__name__, remedy)
    for name, value in lists.items():
        if not isinstance(value, (list, tuple)):
            expected = f"a list of tensors, one for each leaf of {lead}"
            remedy = "give every argument of a leaf as a list, or none"
            refuse(TypeError, op, name, expected, type(value).__name__, remedy)
    count = len(lists[lead])
    for name, value in lists.items():
        if len(value) != count:
            expected = f"{count} tensors, one for each leaf of {lead}"
            remedy = "give every leaf its own, in the same order"
            refuse(ValueError, op, name, expected, str(len(value)), remedy)
    if count == 0:
        remedy = "leave out a call that has nothing to do"
        refuse(ValueError, op, lead, "at least one tensor", "0", remedy)


def _check_same_device(op: str, name: str, t: Tensor, first: Tensor) -> None:
    if t.device != first.device:
        expected = f"{first.device}, the device of leaf 0"
        remedy = f"move it with {name}.to({first.device})"
        refuse(ValueError, op, name, expected, str(t.device), remedy)


def _check_overlap_of_leaves(op: str, memories: Sequence[Arguments]) -> None:
    seen: list[tuple[str, int, Tensor, bool]] = []
    for k, arguments in enumerate(memories):
        mine = [(n, t, w) for n, t, w in arguments if t is not None and n not in SHARED]
        for name, tensor, written in mine:
            for other, leaf, other_tensor, other_written in seen:
                if (written or other_written) and meet(tensor, other_tensor):
                    refuse_overlap(f"{op}: leaf {k}", name, f"{other} of leaf {leaf}")
        seen += [(name, k, tensor, written) for name, tensor, written in mine]
