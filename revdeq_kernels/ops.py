"""The public functions of the op layer.

Each stands for ``torch.ops.revdeq.<name>`` (schema in ``csrc/schema.cpp``), or for the same op of a
Python backend where one was chosen (``backends.py``). What autograd, fake tensors and torch.compile
need beside the kernels is in ``registration.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .registration import OPS

_update, _invert = OPS["update_"], OPS["invert_"]
_adjoint = OPS["adjoint_"]
_update_exact, _invert_exact = OPS["update_exact_"], OPS["invert_exact_"]
_quantize, _dequantize = OPS["quantize"], OPS["dequantize"]


def update_(state: Tensor, f: Tensor, beta: float, *, cast: Tensor | None = None) -> Tensor:
    """One half step forward, in place: state <- (1 - beta) state + beta f.

    Args:
        state: float32, float64, bfloat16 or float16, of any shape, dense in any order of its
            dimensions. Overwritten.
        f: the same shape, any strides (other strides than the state's cost a copy). float32,
            bfloat16 or float16 for a float32 state; these or float64 for float64; the state's own
            dtype for bfloat16 and float16.
        beta: the relaxation factor, in (0, 2) and not 1. A Python number, not a tensor.
        cast: if given, receives the new state, rounded to its dtype: that of f, or float32. Shape
            and strides of the state.

    Returns:
        `state`.

    Computed in float32 (float64 for a float64 state), each product and the sum rounded once, then
    rounded to nearest even to the state's dtype: the same bits on every backend.

    Memory: each element of state and f is read once, state and cast written once; for a float32
    state with bfloat16 f and cast that is 12 bytes per element.

    Raises:
        ValueError, TypeError: an argument is not as above, or shares memory with one that is
            written; nothing has been written then.
        RuntimeError: an argument requires grad while grad mode is on (the op has no derivative), or
            the backend cannot run.

    Source: arXiv 2509.12917, the reversible solver's forward step.
    """
    _update((state,), (f,), (state, f, beta), cast)
    return state


def invert_(state: Tensor, f: Tensor, beta: float, *, cast: Tensor | None = None) -> Tensor:
    """One half step back, in place: state <- (state - beta f) / (1 - beta).

    The inverse of ``update_`` up to rounding, which it amplifies by 1 / abs(1 - beta) each time:
    for a state that must come back bit for bit, use the exact pair. Arguments, dtypes, memory and
    errors are those of ``update_``.

    Source: arXiv 2509.12917, the reversible solver's backward step.
    """
    _invert((state,), (f,), (state, f, beta), cast)
    return state


def adjoint_(grad: Tensor, vjp: Tensor, scale: float, beta: float, seed: Tensor) -> Tensor:
    """One half step of the backward pass, in place: grad <- scale grad + vjp; seed <- beta grad.

    `grad` is the gradient with respect to one of the states, carried from step to step; `vjp` is
    what f's vector-Jacobian product contributed to it; `seed` receives the cotangent for the next
    evaluation of f.

    Args:
        grad: float32, or float64 if f is. Any shape, dense in any order of its dimensions.
        vjp: of grad's shape, any strides. The dtype of `seed`, or float32 where f read a float32
            state and rounds by itself (autocast).
        scale: the factor of grad: 1 - beta, or 1.
        beta: the factor of the seed. A Python number, as `scale`.
        seed: of grad's shape and strides, in f's dtype. Overwritten.

    Returns:
        `grad`.

    Each product and the sum are rounded once, in grad's dtype: the bits are those of the same
    sequence in PyTorch. Memory: 2 sizeof(grad) + sizeof(vjp) + sizeof(seed) bytes per element, 12
    for bfloat16 f. Errors as for ``update_``.

    Source: arXiv 2509.12917, the adjoint of the reversible solver's step.
    """
    _adjoint((grad, seed), (vjp,), (grad, vjp, scale, beta, seed))
    return grad


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
) -> Tensor:
    """One half step forward on a fixed-point state that ``invert_exact_`` takes back bit for bit.

    The new state is the grid point nearest to (1 - beta) state + beta f, with beta replaced by
    ``effective_beta(beta)``. What a contraction on a grid destroys, log2(1 / abs(1 - beta)) bits
    per element, is kept in `digits`.

    Args:
        state: int32, standing for state / 2**frac_bits (see ``quantize``). Dense. Overwritten.
        digits: uint8, contiguous, one dimension, at least ``digit_bytes(state.numel(), beta)``
            elements, of which just that many are written. One per half step.
        flag: int32, one element. Becomes flag | 1 if a value of f or of the new state leaves
            (-2**30 + 256, 2**30 - 256) / 2**frac_bits or is NaN. Read it after a solve: such a
            state is wrong as a number (f saturates, the state wraps), though it still inverts.
        f: float32, bfloat16 or float16, of the state's shape.
        beta: in (0, 2), with abs(1 - beta) >= 1/256.
        frac_bits: 0 to 30, the same in a whole solve.
        tie: 0 or 1: which way a point in the middle rounds. Alternate it (n % 2 for y and
            (n + 1) % 2 for z in step n), and give the inverse the same.
        cast: as in ``update_``: the new state as float32, rounded to its dtype.

    Returns:
        `state`.

    Memory: 8 + sizeof(f) + sizeof(cast) bytes per element and one digit: 1/8 byte at beta 0.5, 1/3
    at 0.8, at most 1. Errors as for ``update_``.
    """
    args = (state, digits, flag, f, beta, frac_bits, tie)
    _update_exact((state, digits, flag), (f,), args, cast)
    return state


def invert_exact_(
    state: Tensor,
    digits: Tensor,
    f: Tensor,
    beta: float,
    frac_bits: int,
    tie: int,
    *,
    cast: Tensor | None = None,
) -> Tensor:
    """The inverse of ``update_exact_``, bit for bit, given the same f, beta, frac_bits and tie.

    It holds for all values, also where the update raised its flag. `digits` is read only.
    Arguments, memory and errors are those of ``update_exact_``.
    """
    args = (state, digits, f, beta, frac_bits, tie)
    _invert_exact((state,), (digits, f), args, cast)
    return state


def quantize(x: Tensor, frac_bits: int, *, flag: Tensor | None = None) -> Tensor:
    """A fixed-point state: x 2**frac_bits, rounded to nearest even, as int32.

    Args:
        x: float32, bfloat16 or float16, any shape and strides.
        frac_bits: 0 to 30.
        flag: as in ``update_exact_``, for the values of x.

    Returns:
        int32, of x's shape and order of dimensions. NaN gives 0, values out of range saturate.

    Memory: 4 + sizeof(x) bytes per element. Errors as for ``update_``.
    """
    if flag is None and is_compiling():
        # Inductor (torch 2.13) cannot take an op that returns a tensor and writes nothing but an
        # optional argument which is absent.
        flag = x.new_zeros(1, dtype=torch.int32)
    return _quantize((), (x,), (x, frac_bits), flag)


def dequantize(state: Tensor, frac_bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that a fixed-point state stands for: state / 2**frac_bits.

    Exact in float64, rounded to nearest even in float32; bfloat16 and float16 are rounded from
    float32, as `cast` is. Memory: 4 + sizeof(dtype) bytes per element. Errors as for ``update_``.
    """
    return _dequantize((), (state,), (state, frac_bits, dtype))
