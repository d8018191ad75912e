"""Launches of the Triton kernels; the arguments are those of ``reference.py``, already checked."""

from __future__ import annotations

import contextlib
import math
import struct
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from revdeq_kernels.checks import same_strides
from revdeq_kernels.fixed_point import BLOCK_LANES, ONE, contraction

from . import half_step as kernels

BLOCK = 1024


def update_(state: Tensor, f: Tensor, beta: float, *, cast: Tensor | None = None) -> None:
    """See ``reference.update_``."""
    _half_step(state, f, beta, cast, invert=False)


def invert_(state: Tensor, f: Tensor, beta: float, *, cast: Tensor | None = None) -> None:
    """See ``reference.invert_``."""
    _half_step(state, f, beta, cast, invert=True)


def _half_step(state: Tensor, f: Tensor, beta: float, cast: Tensor | None, invert: bool) -> None:
    if state.numel() == 0:
        return
    keep, beta_ = _as_scalars(state.dtype, 1.0 - beta, beta)
    _launch(
        kernels.half_step_kernel,
        -(-state.numel() // BLOCK),
        *(state, _laid_out_like(f, state), cast, state.numel(), keep, beta_),
        INVERT=invert,
        BLOCK=BLOCK,
    )


def _as_scalars(dtype: torch.dtype, *values: float) -> tuple[float | int, ...]:
    """Numbers as the kernels take them: Triton passes a Python float as float32."""
    if dtype != torch.float64:
        return values
    return tuple(struct.unpack("<q", struct.pack("<d", x))[0] for x in values)


def adjoint_(grad: Tensor, vjp: Tensor, scale: float, beta: float, seed: Tensor) -> None:
    """See ``reference.adjoint_``."""
    if grad.numel() == 0:
        return
    scalars = _as_scalars(grad.dtype, scale, beta)
    _launch(
        kernels.adjoint_kernel,
        -(-grad.numel() // BLOCK),
        *(grad, _laid_out_like(vjp, grad), seed, grad.numel(), *scalars),
        BLOCK=BLOCK,
    )


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
    """See ``reference.update_exact_``."""
    _exact(state, digits, flag, f, beta, frac_bits, tie, cast, invert=False)


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
    """See ``reference.invert_exact_``."""
    _exact(state, digits, None, f, beta, frac_bits, tie, cast, invert=True)


def _exact(
    state: Tensor,
    digits: Tensor,
    flag: Tensor | None,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    cast: Tensor | None,
    invert: bool,
) -> None:
    if state.numel() == 0:
        return
    form, packed, step = exact_step(beta, frac_bits, tie)
    num_bytes = contraction(beta).blocks(state.numel()) * BLOCK_LANES
    lanes = 1024 if packed == 1 else 512
    _launch(
        kernels.exact_kernel,
        -(-num_bytes // lanes),
        *(state, digits, flag, _laid_out_like(f, state), cast, state.numel(), num_bytes, *step),
        FORM=form,
        INVERT=invert,
        DIGITS_PER_BYTE=packed,
        LANES=lanes,
    )


@lru_cache(maxsize=1024)
def exact_step(beta: float, frac_bits: int, tie: int) -> tuple[int, int, tuple[float | int, ...]]:
    """The form, the digits per byte and the step of csrc's ExactStep, in the order of STEP."""
    c = contraction(beta)
    half = c.q // 2 + tie - 1
    whole, part = c.q >> ONE, c.q & (2**ONE - 1)
    power = part == 0 and whole & (whole - 1) == 0
    form = kernels.SHIFT if power else kernels.INTEGER if part == 0 else kernels.GENERAL
    step = {
        "scale": 2.0**frac_bits,
        "unscale": 2.0**-frac_bits,
        "negate": 0 if c.sign > 0 else -1,
        "base": c.base,
        "log2_base": math.ceil(math.log2(c.base)),
        "inverse": -(-(2**16) // c.base),
        "reciprocal": (2**62 // c.q + 1) // 2,
        "q_whole": whole,
        "q_part": part,
        "offset": half >> ONE,
        "half": half,
    }
    return form.value, c.digits_per_byte, tuple(step[name] for name in kernels.STEP)


def quantize(x: Tensor, frac_bits: int, *, flag: Tensor | None = None) -> Tensor:
    """See ``reference.quantize``."""
    state = torch.empty_like(x, dtype=torch.int32)
    _convert(kernels.quantize_kernel, x, state, flag, state.numel(), 2.0**frac_bits)
    return state


def dequantize(state: Tensor, frac_bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """See ``reference.dequantize``."""
    x = torch.empty_like(state, dtype=dtype)
    _convert(kernels.dequantize_kernel, state, x, state.numel(), 2.0**-frac_bits)
    return x


def _convert(kernel: Any, source: Tensor, out: Tensor, *args: Any) -> None:
    if out.numel() > 0:
        _launch(
            kernel, -(-out.numel() // BLOCK), _laid_out_like(source, out), out, *args, BLOCK=BLOCK
        )


def _launch(kernel: Any, programs: int, tensor: Tensor, *args: Any, **constants: Any) -> None:
    """Launch on the device of `tensor`, the first argument, without fused multiply-adds."""
    device = torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
    with device:
        kernel[(programs,)](tensor, *args, **constants, **kernels.OPTIONS)


def _laid_out_like(f: Tensor, state: Tensor) -> Tensor:
    """`f` in the memory order of `state`: itself, or a copy where its strides differ."""
    if same_strides(f, state):
        return f
    return torch.empty_like(state, dtype=f.dtype).copy_(f)
