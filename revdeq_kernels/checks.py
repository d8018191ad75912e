"""Argument checks of the ops, for the Python backends, fake tensors and error messages.

``csrc/checks.h`` says the same, in the same words and order, for the compiled backends.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import NoReturn

import torch
from torch import Tensor

from . import fixed_point

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16

F_DTYPES: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    F32: (F32, BF16, F16),
    F64: (F64, F32, BF16, F16),
    BF16: (BF16,),
    F16: (F16,),
}
"""The dtypes of f that each float state takes."""

ADJOINT_DTYPES: dict[torch.dtype, tuple[torch.dtype, ...]] = {F32: (F32, BF16, F16), F64: (F64,)}
"""The dtypes of seed, which are those of f, that each grad takes; vjp is of these or float32."""

EXACT_F_DTYPES = (F32, BF16, F16)
"""The dtypes of f that an exact (int32) state takes."""


def refuse(
    kind: type[Exception], op: str, name: str, expected: str, got: str, remedy: str
) -> NoReturn:
    """Raise `kind` with the one form that all messages have."""
    raise kind(f"{op}: {name}: expected {expected}, got {got}; {remedy}")


def _one_of(dtypes: tuple[torch.dtype, ...]) -> str:
    names = [str(d) for d in dtypes]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]


def _number(op: str, name: str, value: float) -> None:
    """Refuse what is no real number: a tensor would lose its gradient on the way to a kernel."""
    if not isinstance(value, Real):
        remedy = f"a tensor's value is {name}.item()"
        refuse(TypeError, op, name, "a Python number", type(value).__name__, remedy)


def _tensors(op: str, **tensors: Tensor | None) -> None:
    """Each must be a strided tensor; an optional one is left out by its caller."""
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            remedy = f"convert it with torch.as_tensor({name})"
            refuse(TypeError, op, name, "a tensor", type(t).__name__, remedy)
        if t.layout != torch.strided:
            refuse(TypeError, op, name, "a strided tensor", str(t.layout), f"use {name}.to_dense()")


def _given(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if t is not None}


def _beta(op: str, beta: float, exact: bool) -> None:
    _number(op, "beta", beta)
    try:
        fixed_point.contraction(beta) if exact else fixed_point.check_beta(beta)
    except fixed_point.BetaError as error:
        refuse(ValueError, op, "beta", error.expected, error.got, error.remedy)


def _finite(op: str, name: str, value: float) -> None:
    _number(op, name, value)
    if not math.isfinite(value):
        remedy = "check how it was computed"
        refuse(ValueError, op, name, "a finite number", f"{value:.12g}", remedy)


def _integers(op: str, frac_bits: int, tie: int) -> None:
    for name, value in (("frac_bits", frac_bits), ("tie", tie)):
        if not isinstance(value, Integral):
            kind = type(value).__name__
            refuse(TypeError, op, name, "a Python integer", kind, f"convert it with int({name})")
    if not 0 <= frac_bits <= 30:
        remedy = "20 suits float32 f and 16 half-precision f"
        refuse(ValueError, op, "frac_bits", "an integer from 0 to 30", str(frac_bits), remedy)
    if tie not in (0, 1):
        remedy = "alternate it: n % 2 for y and (n + 1) % 2 for z in step n"
        refuse(ValueError, op, "tie", "0 or 1", str(tie), remedy)


def _dtype(op: str, name: str, t: Tensor, allowed: tuple[torch.dtype, ...], why: str = "") -> None:
    if t.dtype not in allowed:
        remedy = f"convert it with {name}.to({allowed[0]})"
        refuse(TypeError, op, name, _one_of(allowed) + why, str(t.dtype), remedy)


def _adjoint_dtypes(op: str, grad: Tensor, vjp: Tensor, seed: Tensor) -> None:
    _dtype(op, "grad", grad, tuple(ADJOINT_DTYPES))
    why = f" for a grad of {grad.dtype}"
    if grad.dtype == F64:
        _dtype(op, "vjp", vjp, (F64,), why)
        _dtype(op, "seed", seed, (F64,), why)
        return
    _dtype(op, "seed", seed, ADJOINT_DTYPES[F32], why)
    if seed.dtype == F32:
        _dtype(op, "vjp", vjp, (F32,), ", the dtype of seed")
    else:
        _dtype(op, "vjp", vjp, (seed.dtype, F32), ", the dtype of seed or float32")


def _device(op: str, name: str, t: Tensor, like: Tensor, like_name: str) -> None:
    if t.device != like.device:
        expected = f"{like.device}, the device of {like_name}"
        remedy = f"move it with {name}.to({like_name}.device)"
        refuse(ValueError, op, name, expected, str(t.device), remedy)


def _shape(op: str, name: str, t: Tensor, like: Tensor, like_name: str) -> None:
    if t.shape != like.shape:
        expected = f"shape {list(like.shape)}, that of {like_name}"
        remedy = f"expand or reshape {name} first: nothing is broadcast"
        refuse(ValueError, op, name, expected, str(list(t.shape)), remedy)


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Whether every element has the same place in memory order; size 1 does not count."""
    if a.numel() == 0:
        return True
    pairs = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(size == 1 or x == y for size, x, y in pairs)


def is_dense(t: Tensor) -> bool:
    """Whether the tensor fills its span of memory, in whatever order of its dimensions."""
    if t.numel() == 0 or t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _dense(op: str, name: str, t: Tensor) -> None:
    if not is_dense(t):
        expected = "a dense tensor (elements without gaps, in any order of dimensions)"
        got = f"shape {list(t.shape)} with strides {list(t.stride())}"
        remedy = f"work on {name}.contiguous() and copy the result back"
        refuse(ValueError, op, name, expected, got, remedy)


def _cast(op: str, cast: Tensor, state: Tensor, f: Tensor) -> None:
    if f.dtype == F32:
        _dtype(op, "cast", cast, (F32,), ", the dtype of f")
    else:
        _dtype(op, "cast", cast, (f.dtype, F32), ", the dtype of f or float32")
    _device(op, "cast", cast, state, "state")
    _shape(op, "cast", cast, state, "state")
    _strides(op, "cast", cast, state, "state")


def _strides(op: str, name: str, t: Tensor, like: Tensor, like_name: str) -> None:
    if not same_strides(t, like):
        expected = f"the strides of {like_name}, {list(like.stride())}"
        remedy = f"allocate it with torch.empty_like({like_name}, dtype=...)"
        refuse(ValueError, op, name, expected, str(list(t.stride())), remedy)


def _digits(op: str, digits: Tensor, state: Tensor, beta: float) -> None:
    _dtype(op, "digits", digits, (torch.uint8,))
    _device(op, "digits", digits, state, "state")
    if digits.dim() != 1 or not digits.is_contiguous():
        expected = "a contiguous tensor of one dimension"
        got = f"shape {list(digits.shape)} with strides {list(digits.stride())}"
        remedy = "allocate it with torch.empty(digit_bytes(state.numel(), beta), dtype=torch.uint8)"
        refuse(ValueError, op, "digits", expected, got, remedy)
    needed = fixed_point.digit_bytes(state.numel(), beta)
    if digits.numel() < needed:
        expected = f"at least {needed} bytes for this state and beta"
        remedy = "allocate digit_bytes(state.numel(), beta) of them per half step"
        refuse(ValueError, op, "digits", expected, str(digits.numel()), remedy)


def _flag(op: str, flag: Tensor, like: Tensor, like_name: str) -> None:
    _dtype(op, "flag", flag, (torch.int32,))
    _device(op, "flag", flag, like, like_name)
    if flag.numel() != 1:
        remedy = "allocate it with torch.zeros(1, dtype=torch.int32)"
        refuse(ValueError, op, "flag", "one element", f"{flag.numel()} elements", remedy)


def _span(t: Tensor) -> tuple[int, int]:
    if t.numel() == 0:
        return t.data_ptr(), t.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


def _overlap(op: str, *arguments: tuple[str, Tensor | None, bool]) -> None:
    """Each argument is (name, tensor, written) and is held against those before it."""
    seen: list[tuple[str, int, int, bool]] = []
    for name, tensor, written in arguments:
        if tensor is None or not has_memory(tensor):
            continue
        begin, end = _span(tensor)
        for other, other_begin, other_end, other_written in seen:
            if (written or other_written) and begin < other_end and other_begin < end:
                got = f"memory that overlaps {other}"
                remedy = f"pass {name}.clone() or another buffer"
                refuse(ValueError, op, name, "memory of its own", got, remedy)
        seen.append((name, begin, end, written))


def has_memory(t: Tensor) -> bool:
    """Whether the tensor holds data: fake, meta and traced tensors have no addresses to compare."""
    return type(t) in (Tensor, torch.nn.Parameter) and t.device.type != "meta"


def half_step(
    op: str, state: Tensor, f: Tensor, beta: float, *, cast: Tensor | None = None
) -> None:
    """Check the arguments of update_ and invert_."""
    _tensors(op, state=state, f=f, **_given(cast=cast))
    _beta(op, beta, exact=False)
    _dtype(op, "state", state, tuple(F_DTYPES))
    _dtype(op, "f", f, F_DTYPES[state.dtype], f" for a state of {state.dtype}")
    _device(op, "f", f, state, "state")
    _shape(op, "f", f, state, "state")
    _dense(op, "state", state)
    if cast is not None:
        _cast(op, cast, state, f)
    _overlap(op, ("state", state, True), ("f", f, False), ("cast", cast, True))


def adjoint(grad: Tensor, vjp: Tensor, scale: float, beta: float, seed: Tensor) -> None:
    """Check the arguments of adjoint_."""
    op = "adjoint_"
    _tensors(op, grad=grad, vjp=vjp, seed=seed)
    _finite(op, "scale", scale)
    _finite(op, "beta", beta)
    _adjoint_dtypes(op, grad, vjp, seed)
    _device(op, "vjp", vjp, grad, "grad")
    _device(op, "seed", seed, grad, "grad")
    _shape(op, "vjp", vjp, grad, "grad")
    _shape(op, "seed", seed, grad, "grad")
    _dense(op, "grad", grad)
    _strides(op, "seed", seed, grad, "grad")
    _overlap(op, ("grad", grad, True), ("vjp", vjp, False), ("seed", seed, True))


def update_exact(
    state: Tensor,
    digits: Tensor,
    flag: Tensor,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    *,
    cast: Tensor | None = None,
) -> None:
    """Check the arguments of update_exact_."""
    _exact("update_exact_", state, digits, flag, f, beta, frac_bits, tie, cast)


def invert_exact(
    state: Tensor,
    digits: Tensor,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    *,
    cast: Tensor | None = None,
) -> None:
    """Check the arguments of invert_exact_, which raises no flag and only reads the digits."""
    _exact("invert_exact_", state, digits, None, f, beta, frac_bits, tie, cast)


def _exact(
    op: str,
    state: Tensor,
    digits: Tensor,
    flag: Tensor | None,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    cast: Tensor | None,
) -> None:
    _tensors(op, state=state, digits=digits, f=f, **_given(flag=flag, cast=cast))
    _beta(op, beta, exact=True)
    _integers(op, frac_bits, tie)
    _dtype(op, "state", state, (torch.int32,))
    _dtype(op, "f", f, EXACT_F_DTYPES, " for an exact state")
    _device(op, "f", f, state, "state")
    _shape(op, "f", f, state, "state")
    _dense(op, "state", state)
    _digits(op, digits, state, beta)
    if flag is not None:
        _flag(op, flag, state, "state")
    if cast is not None:
        _cast(op, cast, state, f)
    _overlap(
        op,
        ("state", state, True),
        ("f", f, False),
        ("digits", digits, flag is not None),
        ("flag", flag, True),
        ("cast", cast, True),
    )


def quantize(x: Tensor, frac_bits: int, *, flag: Tensor | None = None) -> None:
    """Check the arguments of quantize."""
    _tensors("quantize", x=x, **_given(flag=flag))
    _integers("quantize", frac_bits, 0)
    _dtype("quantize", "x", x, EXACT_F_DTYPES)
    if flag is not None:
        _flag("quantize", flag, x, "x")
        _overlap("quantize", ("flag", flag, True), ("x", x, False))


def dequantize(state: Tensor, frac_bits: int, dtype: torch.dtype = torch.float32) -> None:
    """Check the arguments of dequantize."""
    _tensors("dequantize", state=state)
    _integers("dequantize", frac_bits, 0)
    _dtype("dequantize", "state", state, (torch.int32,))
    allowed = (F32, F64, BF16, F16)
    if dtype not in allowed:
        remedy = "ask for one of these and convert"
        refuse(TypeError, "dequantize", "dtype", _one_of(allowed), str(dtype), remedy)
