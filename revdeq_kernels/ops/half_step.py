"""The public functions of the op layer: half steps, conversions, the residual.

Each stands for ``torch.ops.revdeq.<name>`` (schema in ``csrc/ops.h``), or for the same op of a
Python backend where one was chosen (``core/backends.py``). What autograd, fake tensors and
torch.compile need beside the kernels is in ``core/op.py`` and ``core/registration.py``. The
backward pass has its ops in ``passes.py``.

A state of several leaves is given as a list of tensors, and so is every tensor that belongs to a
leaf: one launch (on a GPU one for every 16 leaves of the same dtypes) then serves all of them. The
lists are as long as the first, the leaves of any shapes and dtypes, on one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..core.registration import OPS

Leaves = TypeVar("Leaves", Tensor, Sequence[Tensor])
"""A tensor, or a list with one for each leaf of the state."""

_update, _invert = OPS["update_"], OPS["invert_"]
_update_exact, _invert_exact = OPS["update_exact_"], OPS["invert_exact_"]
_quantize, _dequantize = OPS["quantize"], OPS["dequantize"]
_residual = OPS["residual"]


def update_(
    state: Leaves, f: Leaves, beta: float | Tensor, *, cast: Leaves | None = None
) -> Leaves:
    """One half step forward, in place: state <- (1 - beta) state + beta f.

    Args:
        state: float32, float64, bfloat16 or float16, of any shape, dense in any order of its
            dimensions. Overwritten.
        f: the same shape, any strides (other strides than the state's cost a copy). float32,
            bfloat16 or float16 for a float32 state; these or float64 for float64; the state's own
            dtype for bfloat16 and float16.
        beta: the relaxation factor, in (0, 2) and not 1. A Python number; or, for a state of one
            leaf, a tensor with one element or one for each channel: of the state's number of
            dimensions or fewer, with 1 in all of them but one (``beta.view(-1, 1, 1)``), in
            float32 (float64 for a float64 state). The values of a tensor are not looked at: at 1
            the inverse divides by zero.
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


def invert_(
    state: Leaves, f: Leaves, beta: float | Tensor, *, cast: Leaves | None = None
) -> Leaves:
    """One half step back, in place: state <- (state - beta f) / (1 - beta).

    The inverse of ``update_`` up to rounding, which it amplifies by 1 / abs(1 - beta) each time:
    for a state that must come back bit for bit, use the exact pair. Arguments, dtypes, memory and
    errors are those of ``update_``.

    Source: arXiv 2509.12917, the reversible solver's backward step.
    """
    _invert((state,), (f,), (state, f, beta), cast)
    return state


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
    """One half step forward on a fixed-point state that ``invert_exact_`` takes back bit for bit.

    The new state is the grid point nearest to (1 - beta) state + beta f, with beta replaced by
    ``effective_beta(beta)``. What a contraction on a grid destroys, log2(1 / abs(1 - beta)) bits
    per element, is kept in `digits`.

    Args:
        state: int32, standing for state / 2**frac_bits (see ``quantize``). Dense. Overwritten.
        digits: uint8, contiguous, one dimension, at least ``digit_bytes(state.numel(), beta)``
            elements, of which just that many are written. One per half step.
        flag: int32, one element, one for all leaves. Becomes flag | 1 if a value of f or of the new
            state leaves `(-2**30 + 256, 2**30 - 256) / 2**frac_bits` or is NaN. Read it after a
            solve: such a state is wrong as a number (f saturates, the state wraps), though it still
            inverts.
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

    It holds for all values, also where the update raised its flag. `digits` is read only.
    Arguments, memory and errors are those of ``update_exact_``.
    """
    args = (state, digits, f, beta, frac_bits, tie)
    _invert_exact((state,), (digits, f), args, cast)
    return state


@overload
def quantize(x: Tensor, frac_bits: int, *, flag: Tensor | None = None) -> Tensor: ...
@overload
def quantize(
    x: Sequence[Tensor], frac_bits: int, *, flag: Tensor | None = None
) -> list[Tensor]: ...
def quantize(
    x: Tensor | Sequence[Tensor], frac_bits: int, *, flag: Tensor | None = None
) -> Tensor | list[Tensor]:
    """A fixed-point state: x 2**frac_bits, rounded to nearest even, as int32.

    Args:
        x: float32, bfloat16 or float16, any shape and strides.
        frac_bits: 0 to 30.
        flag: as in ``update_exact_``, for the values of x.

    Returns:
        int32, of x's shape and order of dimensions. NaN gives 0, values out of range saturate.

    Memory: 4 + sizeof(x) bytes per element. Errors as for ``update_``.
    """
    if isinstance(x, (list, tuple)):
        out = [torch.empty_like(t, dtype=torch.int32) for t in x if isinstance(t, Tensor)]
        OPS["quantize.list"]((out,), (x,), (x, frac_bits, out), flag)
        return out
    if flag is None and isinstance(x, Tensor) and is_compiling():
        # Inductor (torch 2.13) cannot take an op that returns a tensor and writes nothing but an
        # optional argument which is absent.
        flag = torch.zeros(1, dtype=torch.int32, device=x.device)
    return _quantize((), (x,), (x, frac_bits), flag)


def dequantize(state: Leaves, frac_bits: int, dtype: torch.dtype = torch.float32) -> Leaves:
    """The numbers that a fixed-point state stands for: state / 2**frac_bits.

    Exact in float64, rounded to nearest even in float32; bfloat16 and float16 are rounded from
    float32, as `cast` is. Memory: 4 + sizeof(dtype) bytes per element. Errors as for ``update_``.
    """
    return _dequantize((), (state,), (state, frac_bits, dtype))


def residual(z: Tensor | Sequence[Tensor], f: Tensor | Sequence[Tensor]) -> Tensor:
    """The norms that a stopping test compares: of z - f and of f, over all elements.

    Args:
        z: what f read, as it was given to f. float32, float64, bfloat16 or float16, dense.
        f: what f returned: the same shape, any strides, a dtype that ``update_`` takes with z's.

    Returns:
        float64, ``[norm(z - f), norm(f)]``, on z's device: nothing waits for it. For lists one row
        for each leaf.

    Everything is computed in float64, in an order that follows from the number of elements alone:
    the same bits on every backend and number of threads. Overflow gives inf, NaN gives NaN.

    Memory: sizeof(z) + sizeof(f) bytes per element. Errors as for ``update_``.

    Source: arXiv 2509.12917, the stopping criterion of its solver.
    """
    return _residual((), (z, f), (z, f))
