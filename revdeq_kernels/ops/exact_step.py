"""The half steps on an exact state: ``update_exact_`` and ``invert_exact_``.

The scheme is original to this project: a fixed-point state, and digits that store what its half
steps round away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.checks import (
    EXACT_F_DTYPES,
    Memory,
    check_beta,
    check_cast,
    check_dense,
    check_device,
    check_digits,
    check_dtype,
    check_flag,
    check_integers,
    check_shape,
    check_tensors,
    given,
)
from ..core.lists import Leaves
from ..core.memory import memory_order
from ..core.op import Op
from ..core.roles import (
    CAST,
    DENSE,
    DIGITS,
    EXACT_CASES,
    EXACT_NUMBERS,
    FLAG_,
    FREE,
    Argument,
)
from ..exact_numbers import BLOCK_LANES, ONE, RANGE, Contraction, contraction
from .conversion import from_fixed, to_fixed

# ---- the definition --------------------------------------------------------------------------


def define_update_exact(
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
    """Round the update to the nearest grid point; store what the rounding loses in `digits`."""
    c = contraction(beta)
    fixed, outside = to_fixed(f, frac_bits)
    d = _int32(c.sign * _int32(state.long() - fixed))
    e = (2**ONE * d + c.q // 2 + tie - 1) // c.q
    new = _int32(fixed + e)
    outside = outside | (new >= int(RANGE)) | (new <= -int(RANGE))
    _pack(d - _preimage(e, c, tie), c, state, digits)
    flag.bitwise_or_(outside.any().to(torch.int32))
    state.copy_(new)
    if cast is not None:
        cast.copy_(from_fixed(state, frac_bits))


def define_invert_exact(
    state: Tensor,
    digits: Tensor,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    *,
    cast: Tensor | None = None,
) -> None:
    """The state before the update that wrote `digits`."""
    c = contraction(beta)
    fixed, _ = to_fixed(f, frac_bits)
    e = _int32(state.long() - fixed)
    d = _int32(_preimage(e, c, tie) + _unpack(digits, c, state))
    state.copy_(_int32(fixed + c.sign * d))
    if cast is not None:
        cast.copy_(from_fixed(state, frac_bits))


def _preimage(e: Tensor, c: Contraction, tie: int) -> Tensor:
    """The smallest d that the update maps to e; the digit is the offset from it."""
    return (c.q * e - c.q // 2 + (2**ONE - tie)) >> ONE


def _int32(x: Tensor) -> Tensor:
    """`x` wrapped to the range of int32, as int64."""
    return x.to(torch.int32).long()


# ---- digits ----------------------------------------------------------------------------------
# Elements are numbered in memory order. A block consists of digits_per_byte groups of 32 elements.
# Its byte l holds the digits of element l of each group, the first group's least significant.


def _pack(digit: Tensor, c: Contraction, state: Tensor, digits: Tensor) -> None:
    flat = memory_order(torch.empty_like(state, dtype=torch.int64).copy_(digit))
    padded = flat.new_zeros(c.blocks(state.numel()) * c.digits_per_byte * BLOCK_LANES)
    padded[: flat.numel()] = flat
    blocks = padded.view(-1, c.digits_per_byte, BLOCK_LANES)
    packed = (blocks * _weights(c, state.device)).sum(1)
    digits[: packed.numel()] = packed.flatten().to(torch.uint8)


def _unpack(digits: Tensor, c: Contraction, state: Tensor) -> Tensor:
    packed = digits[: c.blocks(state.numel()) * BLOCK_LANES].long().view(-1, 1, BLOCK_LANES)
    flat = (packed // _weights(c, state.device) % c.base).flatten()[: state.numel()]
    digit = torch.empty_like(state, dtype=torch.int64)
    memory_order(digit).copy_(flat)
    return digit


def _weights(c: Contraction, device: torch.device) -> Tensor:
    places = torch.arange(c.digits_per_byte, device=device)
    return (c.base**places).view(1, -1, 1)


# ---- argument checks -------------------------------------------------------------------------


def check_update_exact(
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
) -> Memory:
    """Check the arguments of update_exact_."""
    check_tensors(op, flag=flag)
    return check_exact_step(op, "state", state, digits, flag, f, beta, frac_bits, tie, cast)


def check_invert_exact(
    op: str,
    state: Tensor,
    digits: Tensor,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    *,
    cast: Tensor | None = None,
) -> Memory:
    """Check the arguments of invert_exact_, which has no flag and only reads the digits."""
    return check_exact_step(op, "state", state, digits, None, f, beta, frac_bits, tie, cast)


def check_exact_step(
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
) -> Memory:
    """Check a half step on an exact state, named `lead` in the op; returns the tensors by name."""
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
    return [(lead, state), ("f", f), ("digits", digits), ("flag", flag), ("cast", cast)]


# ---- the ops ---------------------------------------------------------------------------------

_I32, _U8 = torch.int32, torch.uint8
_STATE, _F = Argument("state", DENSE, written=True), Argument("f", FREE)

_update = Op(
    "update_exact_",
    (_STATE, Argument("digits", DIGITS, written=True), FLAG_, _F, *EXACT_NUMBERS, CAST),
    define_update_exact,
    check_update_exact,
    instead="(1 - beta) * state + beta * f",
    dtypes=[(_I32, _U8, _I32, f, cast) for f, cast in EXACT_CASES],
    equation="d = s (state - F); e = floor((2^30 d + q/2 + tie - 1) / q); "
    "state <- F + e; digit <- d - first(e)",
    kernels=("exact_kernel",),
)
_invert = Op(
    "invert_exact_",
    (_STATE, Argument("digits", DIGITS), _F, *EXACT_NUMBERS, CAST),
    define_invert_exact,
    check_invert_exact,
    instead="(state - beta * f) / (1 - beta)",
    dtypes=[(_I32, _U8, f, cast) for f, cast in EXACT_CASES],
    equation="d = first(state - F) + digit; state <- F + s d",
    kernels=("exact_kernel",),
)

# ---- the public functions --------------------------------------------------------------------


def update_exact_(
    state: Leaves,
    digits: Leaves,
    flag: Tensor,
    f: Leaves,
    beta: float,
    frac_bits: int,
    tie: int,
    *,
    cast: Leaves | None = None,
) -> Leaves:
    """One half step forward on a fixed-point state; ``invert_exact_`` reverses it bit for bit.

    The new state is the grid point nearest to (1 - beta) state + beta f, with beta replaced by
    ``effective_beta(beta)``. On a grid, this contraction loses log2(1 / abs(1 - beta)) bits per
    element; they are stored in `digits`.

    Args:
        state: int32, representing state / 2**frac_bits (see ``quantize``). Dense. Overwritten.
        digits: uint8, contiguous, one-dimensional, with at least
            ``digit_bytes(state.numel(), beta)`` elements, of which exactly that many are written.
            Each half step needs its own.
        flag: int32, one element, shared by all leaves. Set to flag | 1 if a value of f or of the
            new state is NaN or outside `(-2**30 + 256, 2**30 - 256) / 2**frac_bits`. Read it after
            a solve: the values of such a state are wrong (f saturates, the state wraps), although
            it can still be inverted.
        f: float32, bfloat16 or float16, with the shape of the state.
        beta: in (0, 2), with abs(1 - beta) >= 1/256.
        frac_bits: the number of fractional bits, 0 to 30, constant during a solve.
        tie: 0 or 1: the direction in which ties round. Alternate it (n % 2 for y and (n + 1) % 2
            for z in step n), and pass the same value to the inverse.
        cast: as in ``update_``: the new state as float32, rounded to the dtype of `cast`.

    Returns:
        `state`.

    Memory: 8 + sizeof(f) + sizeof(cast) bytes per element, plus one digit: 1/8 byte at beta 0.5,
    1/3 at 0.8, at most 1. Raises the same errors as ``update_``.
    """
    _update((state, digits, flag, f, beta, frac_bits, tie), cast)
    return state


def invert_exact_(
    state: Leaves,
    digits: Leaves,
    f: Leaves,
    beta: float,
    frac_bits: int,
    tie: int,
    *,
    cast: Leaves | None = None,
) -> Leaves:
    """The inverse of ``update_exact_``, bit for bit, given the same f, beta, frac_bits and tie.

    It is exact for all values, even if the update set its flag. `digits` is only read. Arguments,
    memory traffic and errors are those of ``update_exact_``.
    """
    _invert((state, digits, f, beta, frac_bits, tie), cast)
    return state
