"""Launches of the Triton kernels; arguments as in ``reference.py``, already checked.

Each function takes one leaf or a list of leaves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from revdeq_kernels.ops.half_step import channel_dimension
from revdeq_kernels.ops.residual import COLUMNS, ROWS

from ..device.exact_step import ExactlyStepped
from ..device.half_step import Stepped
from ..kernels import half_step as kernels
from .leaves import (
    BLOCK,
    Leaves,
    as_scalars,
    grouped,
    laid_out_like,
    lanes_of,
    launch,
    numels_of,
    programs_of,
    step_numbers,
)

# ---- float states ----------------------------------------------------------------------------


def update_(state: Leaves, f: Leaves, beta: float | Tensor, *, cast: Leaves | None = None) -> None:
    """See ``reference.update_``."""
    _half_step(state, f, beta, cast, invert=False)


def invert_(state: Leaves, f: Leaves, beta: float | Tensor, *, cast: Leaves | None = None) -> None:
    """See ``reference.invert_``."""
    _half_step(state, f, beta, cast, invert=True)


def _half_step(
    state: Leaves, f: Leaves, beta: float | Tensor, cast: Leaves | None, invert: bool
) -> None:
    for group in grouped(state=state, f=f, cast=cast):
        states = group["state"]
        stepped = Stepped(states, laid_out_like(group["f"], states), group.get("cast"))
        numels = numels_of(states)
        if isinstance(beta, Tensor):  # on one leaf
            kernel = kernels.channel_step_kernel
            one = Stepped(*(None if t is None else t[0] for t in stepped))
            args = (one, *numels, *_channels(states[0], beta))
        else:
            kernel = kernels.half_step_kernel
            args = (stepped, numels, *as_scalars(states[0].dtype, 1.0 - beta, beta))
        launch(kernel, programs_of(numels), states[0], *args, INVERT=invert, BLOCK=BLOCK)


def _channels(state: Tensor, beta: Tensor) -> tuple[Tensor, int, int, int]:
    """The betas, and inner, channels and stride, which select the beta of each element."""
    dimension = channel_dimension(state, beta)
    if dimension is None or dimension < 0:
        return beta, 1, 1, 0
    stride = beta.stride(dimension - state.dim())
    return beta, state.stride(dimension), state.shape[dimension], stride


# ---- exact states ----------------------------------------------------------------------------


def update_exact_(
    state: Leaves,
    digits: Leaves,
    flag: Tensor,
    f: Leaves,
    *numbers: Any,
    cast: Leaves | None = None,
) -> None:
    """See ``reference.update_exact_``; `numbers` are beta, frac_bits and tie."""
    _exact(state, digits, flag, f, numbers, cast)


def invert_exact_(
    state: Leaves, digits: Leaves, f: Leaves, *numbers: Any, cast: Leaves | None = None
) -> None:
    """See ``reference.invert_exact_``."""
    _exact(state, digits, None, f, numbers, cast)


def _exact(
    state: Leaves,
    digits: Leaves,
    flag: Tensor | None,
    f: Leaves,
    numbers: tuple[Any, ...],
    cast: Leaves | None,
) -> None:
    form, packed, step = step_numbers(*numbers)
    for group in grouped(state=state, digits=digits, f=f, cast=cast):
        states = group["state"]
        stepped = ExactlyStepped(
            states, group["digits"], laid_out_like(group["f"], states), group.get("cast")
        )
        num_bytes, lanes = lanes_of(states, numbers[0])
        launch(
            kernels.exact_kernel,
            programs_of(num_bytes, lanes),
            states[0],
            *(stepped, flag, numels_of(states), num_bytes, *step),
            FORM=form,
            DIGITS_PER_BYTE=packed,
            LANES=lanes,
        )


# ---- conversions and the residual ------------------------------------------------------------


def quantize(
    x: Leaves, frac_bits: int, out: Leaves | None = None, *, flag: Tensor | None = None
) -> Tensor | None:
    """See ``reference.quantize``; for lists, with `out`, see ``reference.quantize_to``."""
    fresh = torch.empty_like(x, dtype=torch.int32) if isinstance(x, Tensor) else None
    for group in grouped(out=out if fresh is None else fresh, x=x):
        some = group["out"]
        numels = numels_of(some)
        args = (laid_out_like(group["x"], some), some, flag, numels, 2.0**frac_bits)
        launch(kernels.quantize_kernel, programs_of(numels), some[0], *args, BLOCK=BLOCK)
    return fresh


def dequantize(state: Leaves, frac_bits: int, dtype: torch.dtype = torch.float32) -> Any:
    """See ``reference.dequantize``."""
    states = [state] if isinstance(state, Tensor) else list(state)
    xs = [torch.empty_like(s, dtype=dtype) for s in states]
    for group in grouped(x=xs, state=states):
        some = group["x"]
        numels = numels_of(some)
        args = (laid_out_like(group["state"], some), some, numels, 2.0**-frac_bits)
        launch(kernels.dequantize_kernel, programs_of(numels), some[0], *args, BLOCK=BLOCK)
    return xs[0] if isinstance(state, Tensor) else xs


def residual(z: Leaves, f: Leaves) -> Tensor:
    """See ``reference.residual``."""
    one = isinstance(z, Tensor)
    zs, fs = ([t] if isinstance(t, Tensor) else list(t) for t in (z, f))
    result = zs[0].new_zeros(len(zs), 2, dtype=torch.float64)
    for group in grouped(z=zs, f=fs, place=result.unbind()):
        _residual(group["z"], group["f"], group["place"])
    return result[0] if one else result


def _residual(zs: tuple[Tensor, ...], fs: tuple[Tensor, ...], places: tuple[Tensor, ...]) -> None:
    """Compute the norms of a group of leaves and write them to `places`."""
    numels = numels_of(zs)
    chunks = programs_of(numels, COLUMNS * ROWS)
    sums = zs[0].new_empty(2 * chunks, dtype=torch.float64)
    args = (zs, laid_out_like(fs, zs), sums, numels)
    launch(kernels.residual_kernel, chunks, sums, *args, COLUMNS=COLUMNS, ROWS=ROWS)
    norms = torch.empty(len(zs), 2, dtype=torch.float64, device=sums.device)
    args = (sums, norms, numels)
    launch(kernels.norms_kernel, len(zs), sums, *args, COLUMNS=COLUMNS, ROWS=ROWS)
    for place, norm in zip(places, norms, strict=True):
        place.copy_(norm)
