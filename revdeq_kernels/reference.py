"""The definition of every op, in plain PyTorch: what each kernel must return, bit for bit.

It is written to be read, runs on any device, and allocates freely. The arguments are those of the
functions of the same names in ``ops.py``, which document them; they are expected to be checked.
The float equations are those of arXiv 2509.12917; the exact form is this project's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .fixed_point import BLOCK_LANES, FIXED_MAX, FIXED_MIN, ONE, RANGE, Contraction, contraction

# ---- float states ----------------------------------------------------------------------------


def update_(state: Tensor, f: Tensor, beta: float, *, cast: Tensor | None = None) -> None:
    """state <- (1 - beta) state + beta f, in float32 (float64 for a float64 state)."""
    keep, beta_, y, f = _operands(state, f, beta)
    _write(state, keep * y + beta_ * f, cast)


def invert_(state: Tensor, f: Tensor, beta: float, *, cast: Tensor | None = None) -> None:
    """state <- (state - beta f) / (1 - beta)."""
    keep, beta_, y, f = _operands(state, f, beta)
    _write(state, (y - beta_ * f) / keep, cast)


def _operands(state: Tensor, f: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compute = torch.float64 if state.dtype == torch.float64 else torch.float32
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


# ---- exact states ----------------------------------------------------------------------------


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
    fixed, outside = _to_fixed(x, frac_bits)
    if flag is not None:
        flag.bitwise_or_(outside.any().to(torch.int32))
    return torch.empty_like(x, dtype=torch.int32).copy_(fixed)


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
