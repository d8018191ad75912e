"""Checks of single arguments, and the common form of their error messages.

``csrc/checks.h`` and ``csrc/overlap.h`` perform the same checks in the same order, with terse
messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from numbers import Integral, Real
from typing import NoReturn

import torch
from torch import Tensor

from .. import exact_numbers
from ..dtypes import F_OF_EXACT, F_OF_STATE, SEED_OF_GRAD
from .memory import is_dense, meet, same_strides

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


def _named(*names: str) -> tuple[torch.dtype, ...]:
    return tuple(getattr(torch, name) for name in names)


F_DTYPES = {_named(state)[0]: _named(*fs) for state, fs in F_OF_STATE.items()}
ADJOINT_DTYPES = {_named(grad)[0]: _named(*seeds) for grad, seeds in SEED_OF_GRAD.items()}
EXACT_F_DTYPES = _named(*F_OF_EXACT)
"""The tables of ``dtypes.py``, in torch's dtypes."""

CHECK = "check how it was computed"

Memory = list[tuple[str, Tensor | None]]
"""The tensors of a call by name, in the order in which they are checked for overlap."""

Check = Callable[..., Memory]
"""The check of an op's arguments: called with the op's name, then the arguments."""


def refuse(
    kind: type[Exception], op: str, name: str, expected: str, got: str, remedy: str
) -> NoReturn:
    """Raise `kind` with a message in the form that all checks share."""
    raise kind(f"{op}: {name}: expected {expected}, got {got}; {remedy}")


def one_of(dtypes: tuple[torch.dtype, ...]) -> str:
    """The dtypes as an English list."""
    names = [str(d) for d in dtypes]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]


def check_number(op: str, name: str, value: float) -> float:
    """`value` as a float; TypeError for a tensor, which would lose its gradient, and the like."""
    if not isinstance(value, Real):
        remedy = f"get the value of a tensor with {name}.item()"
        refuse(TypeError, op, name, "a Python number", type(value).__name__, remedy)
    try:
        return float(value)
    except OverflowError:
        refuse(ValueError, op, name, "a number in the range of a float", "one too large", CHECK)


def check_tensors(op: str, **tensors: Tensor | None) -> None:
    """Require strided tensors; callers leave out optional tensors that are None."""
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            remedy = f"convert it with torch.as_tensor({name})"
            refuse(TypeError, op, name, "a tensor", type(t).__name__, remedy)
        if t.layout != torch.strided:
            refuse(TypeError, op, name, "a strided tensor", str(t.layout), f"use {name}.to_dense()")
        if t.is_neg():
            expected = "a tensor without the negative bit"
            remedy = f"use {name}.resolve_neg()"
            refuse(ValueError, op, name, expected, "a lazily negated view", remedy)


def given(**tensors: Tensor | None) -> dict[str, Tensor]:
    """The tensors that are not None."""
    return {name: t for name, t in tensors.items() if t is not None}


def check_beta(op: str, name: str, beta: float, exact: bool) -> None:
    """Raise unless the step with this beta contracts and has an inverse."""
    beta = check_number(op, name, beta)
    try:
        exact_numbers.contraction(beta) if exact else exact_numbers.check_beta(beta)
    except exact_numbers.BetaError as error:
        refuse(ValueError, op, name, error.expected, error.got, error.remedy)


def check_finite(op: str, name: str, value: float) -> None:
    """Raise ValueError for infinity and NaN."""
    value = check_number(op, name, value)
    if not math.isfinite(value):
        refuse(ValueError, op, name, "a finite number", f"{value:.12g}", CHECK)


def check_integers(op: str, frac_bits: int, tie: int) -> None:
    """Require integers in the ranges of `frac_bits` and `tie`."""
    for name, value in (("frac_bits", frac_bits), ("tie", tie)):
        if not isinstance(value, Integral):
            kind = type(value).__name__
            refuse(TypeError, op, name, "a Python integer", kind, f"convert it with int({name})")
    if not 0 <= frac_bits <= 30:
        remedy = "use 20 for float32 f, 16 for half-precision f"
        refuse(ValueError, op, "frac_bits", "an integer from 0 to 30", str(frac_bits), remedy)
    if tie not in (0, 1):
        remedy = "alternate it: n % 2 for y and (n + 1) % 2 for z in step n"
        refuse(ValueError, op, "tie", "0 or 1", str(tie), remedy)


def check_dtype(
    op: str, name: str, t: Tensor, allowed: tuple[torch.dtype, ...], why: str = ""
) -> None:
    """Raise TypeError unless the dtype is in `allowed`; `why` says what determines these."""
    if t.dtype not in allowed:
        remedy = f"convert it with {name}.to({allowed[0]})"
        refuse(TypeError, op, name, one_of(allowed) + why, str(t.dtype), remedy)


def check_device(op: str, name: str, t: Tensor, like: Tensor, like_name: str) -> None:
    """Raise ValueError unless the tensor is on the device of `like`."""
    if t.device != like.device:
        expected = f"{like.device}, the device of {like_name}"
        remedy = f"move it with {name}.to({like_name}.device)"
        refuse(ValueError, op, name, expected, str(t.device), remedy)


def check_shape(op: str, name: str, t: Tensor, like: Tensor, like_name: str) -> None:
    """Raise ValueError unless the tensor has the shape of `like`."""
    if t.shape != like.shape:
        expected = f"shape {list(like.shape)}, the shape of {like_name}"
        remedy = f"expand or reshape {name} first: the op does not broadcast"
        refuse(ValueError, op, name, expected, str(list(t.shape)), remedy)


def check_dense(op: str, name: str, t: Tensor) -> None:
    """Raise ValueError unless the tensor is dense: no gaps between its elements in memory."""
    if not is_dense(t):
        expected = "a dense tensor (no gaps between elements, dimensions in any order)"
        got = f"shape {list(t.shape)} with strides {list(t.stride())}"
        remedy = f"pass {name}.contiguous() and copy the result back"
        refuse(ValueError, op, name, expected, got, remedy)


def check_cast(op: str, cast: Tensor, state: Tensor, f: Tensor, lead: str) -> None:
    """Check `cast`: a dtype that f can read, and the state's device, shape and strides."""
    if f.dtype == F32:
        check_dtype(op, "cast", cast, (F32,), ", the dtype of f")
    else:
        check_dtype(op, "cast", cast, (f.dtype, F32), ", the dtype of f or float32")
    check_device(op, "cast", cast, state, lead)
    check_shape(op, "cast", cast, state, lead)
    check_strides(op, "cast", cast, state, lead)


def check_strides(op: str, name: str, t: Tensor, like: Tensor, like_name: str) -> None:
    """Raise ValueError unless the tensor has the memory order of `like`."""
    if not same_strides(t, like):
        expected = f"the strides of {like_name}, {list(like.stride())}"
        remedy = f"allocate it with torch.empty_like({like_name}, dtype=...)"
        refuse(ValueError, op, name, expected, str(list(t.stride())), remedy)


def check_digits(op: str, digits: Tensor, state: Tensor, lead: str, beta: float) -> None:
    """Check `digits`: uint8, contiguous, and large enough for the state's digits."""
    check_dtype(op, "digits", digits, (torch.uint8,))
    check_device(op, "digits", digits, state, lead)
    if digits.dim() != 1 or not digits.is_contiguous():
        expected = "a contiguous tensor of one dimension"
        got = f"shape {list(digits.shape)} with strides {list(digits.stride())}"
        remedy = "allocate it with torch.empty(digit_bytes(state.numel(), beta), dtype=torch.uint8)"
        refuse(ValueError, op, "digits", expected, got, remedy)
    needed = exact_numbers.digit_bytes(state.numel(), beta)
    if digits.numel() < needed:
        expected = f"at least {needed} bytes for this state and beta"
        remedy = "allocate digit_bytes(state.numel(), beta) bytes per half step"
        refuse(ValueError, op, "digits", expected, str(digits.numel()), remedy)


def check_flag(op: str, flag: Tensor, like: Tensor, like_name: str) -> None:
    """Check `flag`: int32, one element, on the device of `like`."""
    check_dtype(op, "flag", flag, (torch.int32,))
    check_device(op, "flag", flag, like, like_name)
    if flag.numel() != 1:
        remedy = "allocate it with torch.zeros(1, dtype=torch.int32)"
        refuse(ValueError, op, "flag", "one element", f"{flag.numel()} elements", remedy)


def check_overlap(op: str, memory: Memory, written: Collection[str]) -> None:
    """Raise ValueError if two tensors overlap and the op writes to one of them (`written`)."""
    seen: list[tuple[str, Tensor]] = []
    for name, tensor in memory:
        if tensor is None:
            continue
        for other, before in seen:
            if (name in written or other in written) and meet(tensor, before):
                refuse_overlap(op, name, other)
        seen.append((name, tensor))


def refuse_overlap(op: str, name: str, other: str) -> NoReturn:
    """Raise ValueError: the argument `name` shares memory with `other`, and one is written."""
    got, remedy = f"memory that overlaps {other}", f"pass {name}.clone() or another buffer"
    refuse(ValueError, op, name, "memory of its own", got, remedy)
