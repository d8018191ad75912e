"""The definition of the exact ops, in plain PyTorch: what ``reference.py`` says of an exact state.

The form is this project's own: a state in fixed point, and digits for what its steps round off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..exact_numbers import (
    BLOCK_LANES,
    FIXED_MAX,
    FIXED_MIN,
    ONE,
    RANGE,
    Contraction,
    contraction,
)

# ---- the half steps --------------------------------------------------------------------------


def update_exact_(
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
    """The point of the grid nearest to the update; what the rounding loses goes to `digits`."""
    c = contraction(beta)
    fixed, outside = _to_fixed(f, frac_bits)
    d = _int32(c.sign * _int32(state.long() - fixed))
    e = (2**ONE * d + c.q // 2 + tie - 1) // c.q
    new = _int32(fixed + e)
    outside = outside | (new >= int(RANGE)) | (new <= -int(RANGE))
    _pack(d - _preimage(e, c, tie), c, state, digits)
    flag.bitwise_or_(outside.any().to(torch.int32))
    state.copy_(new)
    if cast is not None:
        cast.copy_(_from_fixed(state, frac_bits))


def invert_exact_(
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
    fixed, _ = _to_fixed(f, frac_bits)
    e = _int32(state.long() - fixed)
    d = _int32(_preimage(e, c, tie) + _unpack(digits, c, state))
    state.copy_(_int32(fixed + c.sign * d))
    if cast is not None:
        cast.copy_(_from_fixed(state, frac_bits))


def _preimage(e: Tensor, c: Contraction, tie: int) -> Tensor:
    """The smallest d that the update maps to e; the digit counts on from it."""
    return (c.q * e - c.q // 2 + (2**ONE - tie)) >> ONE


def _int32(x: Tensor) -> Tensor:
    """`x` modulo 2**32, as int64 within the range of int32."""
    return x.to(torch.int32).long()


# ---- fixed point -----------------------------------------------------------------------------


def quantize(x: Tensor, frac_bits: int, *, flag: Tensor | None = None) -> Tensor:
    """`x` on the grid of 2**-frac_bits, as int32."""
    state = torch.empty_like(x, dtype=torch.int32)
    quantize_to(x, frac_bits, state, flag=flag)
    return state


def quantize_to(x: Tensor, frac_bits: int, out: Tensor, *, flag: Tensor | None = None) -> None:
    """The same with a place for the result, which lists are given."""
    fixed, outside = _to_fixed(x, frac_bits)
    if flag is not None:
        flag.bitwise_or_(outside.any().to(torch.int32))
    out.copy_(fixed)


def dequantize(state: Tensor, frac_bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that `state` stands for; exact in float64, else rounded by way of float32."""
    if dtype == torch.float64:
        return state.to(dtype) * 2.0**-frac_bits
    return _from_fixed(state, frac_bits).to(dtype)


def _to_fixed(f: Tensor, frac_bits: int) -> tuple[Tensor, Tensor]:
    """f 2**k rounded to nearest even (as int64), and where it left the range or is NaN."""
    v = f.to(torch.float32) * 2.0**frac_bits
    outside = ~(v.abs() < RANGE)
    v = torch.where(v.isnan(), 0.0, v).clamp(FIXED_MIN, FIXED_MAX)
    return v.round().long(), outside


def _from_fixed(state: Tensor, frac_bits: int) -> Tensor:
    return state.to(torch.float32) * 2.0**-frac_bits


# ---- digits ----------------------------------------------------------------------------------
# Elements count in memory order. A block is digits_per_byte groups of 32 elements, and its byte l
# holds the digits of the elements at place l of every group, the first group's in the lowest place.


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


def memory_order(t: Tensor) -> Tensor:
    """A one-dimensional view of a dense tensor, in the order of its memory."""
    return t.as_strided((t.numel(),), (1,))
