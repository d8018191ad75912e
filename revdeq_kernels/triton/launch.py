"""Launches of the Triton kernels; the arguments are those of ``reference.py``, already checked.

Each function takes a leaf or a list of leaves. Leaves that are of one kind to Triton's compiler go
together, up to LEAVES in a launch.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from revdeq_kernels.checks import channel_dimension
from revdeq_kernels.conditions import same_strides
from revdeq_kernels.fixed_point import BLOCK_LANES, ONE, contraction, effective_beta
from revdeq_kernels.reference import COLUMNS, ROWS

from . import half_step as steps
from . import kernels, passes

BLOCK = 1024
LEAVES = 16
"""The most leaves of a launch."""

Leaves = Tensor | Sequence[Tensor]
Group = dict[str, tuple[Tensor, ...]]

# ---- leaves ----------------------------------------------------------------------------------


def _groups(**lists: Leaves | None) -> Iterator[Group]:
    """The leaves that one launch serves, by argument; empty ones are left out."""
    given = {
        n: [v] if isinstance(v, Tensor) else list(v) for n, v in lists.items() if v is not None
    }
    alike: dict[tuple[Any, ...], list[int]] = {}
    for k, leaf in enumerate(zip(*given.values(), strict=True)):
        if leaf[0].numel() > 0:
            alike.setdefault(_kind(leaf), []).append(k)
    for leaves in alike.values():
        for first in range(0, len(leaves), LEAVES):
            chosen = leaves[first : first + LEAVES]
            yield {name: tuple(values[k] for k in chosen) for name, values in given.items()}


def _kind(leaf: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """What Triton compiles a kernel for: mixed, every mixture would be compiled by itself."""
    numel = leaf[0].numel()
    return numel == 1, numel % 16 == 0, *((t.dtype, t.data_ptr() % 16 == 0) for t in leaf)


def _programs(sizes: Sequence[int], block: int = BLOCK) -> int:
    """How many programs the leaves need, each by itself."""
    return sum(-(-size // block) for size in sizes)


def _numels(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(t.numel() for t in tensors)


def _laid_out_like(fs: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each f in the memory order of its state: itself, or a copy where its strides differ."""
    return tuple(
        f if same_strides(f, state) else torch.empty_like(state, dtype=f.dtype).copy_(f)
        for f, state in zip(fs, states, strict=True)
    )


def _launch(kernel: Any, programs: int, lead: Tensor, *args: Any, **constants: Any) -> None:
    """Launch on the device of `lead`, without fused multiply-adds."""
    device = torch.cuda.device(lead.device) if lead.is_cuda else contextlib.nullcontext()
    with device:
        kernel[(programs,)](*args, **constants, **kernels.OPTIONS)


def _as_scalars(dtype: torch.dtype, *values: float) -> tuple[float | int, ...]:
    """Numbers as the kernels take them: Triton passes a Python float as float32."""
    if dtype != torch.float64:
        return values
    return tuple(struct.unpack("<q", struct.pack("<d", x))[0] for x in values)


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
    for group in _groups(state=state, f=f, cast=cast):
        states, casts = group["state"], group.get("cast")
        if isinstance(beta, Tensor):
            one_cast = None if casts is None else casts[0]
            _channel_step(states[0], group["f"][0], beta, one_cast, invert)
            continue
        numels = _numels(states)
        scalars = _as_scalars(states[0].dtype, 1.0 - beta, beta)
        args = (states, _laid_out_like(group["f"], states), casts, numels, *scalars)
        kernel = kernels.half_step_kernel
        _launch(kernel, _programs(numels), states[0], *args, INVERT=invert, BLOCK=BLOCK)


def _channel_step(
    state: Tensor, f: Tensor, beta: Tensor, cast: Tensor | None, invert: bool
) -> None:
    inner, channels, stride = 1, 1, 0
    dimension = channel_dimension(state, beta)
    if dimension is not None and dimension >= 0:
        inner, channels = state.stride(dimension), state.shape[dimension]
        stride = beta.stride(dimension - state.dim())
    (source,) = _laid_out_like([f], [state])
    args = (state, source, cast, state.numel(), beta, inner, channels, stride)
    blocks = _programs([state.numel()])
    _launch(kernels.channel_step_kernel, blocks, state, *args, INVERT=invert, BLOCK=BLOCK)


# ---- exact states ----------------------------------------------------------------------------


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
) -> None:
    """See ``reference.update_exact_``."""
    _exact(state, digits, flag, f, beta, frac_bits, tie, cast, invert=False)


def invert_exact_(
    state: Leaves,
    digits: Leaves,
    f: Leaves,
    beta: float,
    frac_bits: int,
    tie: int,
    *,
    cast: Leaves | None = None,
) -> None:
    """See ``reference.invert_exact_``."""
    _exact(state, digits, None, f, beta, frac_bits, tie, cast, invert=True)


def _exact(
    state: Leaves,
    digits: Leaves,
    flag: Tensor | None,
    f: Leaves,
    beta: float,
    frac_bits: int,
    tie: int,
    cast: Leaves | None,
    invert: bool,
) -> None:
    form, packed, step = exact_step(beta, frac_bits, tie)
    for group in _groups(state=state, digits=digits, f=f, cast=cast):
        states = group["state"]
        num_bytes, lanes = _lanes(states, beta)
        _launch(
            kernels.exact_kernel,
            _programs(num_bytes, lanes),
            states[0],
            *(states, group["digits"], flag, _laid_out_like(group["f"], states)),
            *(group.get("cast"), _numels(states), num_bytes, *step),
            FORM=form,
            INVERT=invert,
            DIGITS_PER_BYTE=packed,
            LANES=lanes,
        )


def _lanes(states: Sequence[Tensor], beta: float) -> tuple[tuple[int, ...], int]:
    """The bytes of digits of each leaf, and how many of them a program has."""
    c = contraction(beta)
    num_bytes = tuple(c.blocks(state.numel()) * BLOCK_LANES for state in states)
    return num_bytes, 1024 if c.digits_per_byte == 1 else 512


@lru_cache(maxsize=1024)
def exact_step(beta: float, frac_bits: int, tie: int) -> tuple[int, int, tuple[float | int, ...]]:
    """The form, the digits per byte and the step of csrc's ExactStep, in the order of STEP."""
    c = contraction(beta)
    half = c.q // 2 + tie - 1
    whole, part = c.q >> ONE, c.q & (2**ONE - 1)
    power = part == 0 and whole & (whole - 1) == 0
    form = steps.SHIFT if power else steps.INTEGER if part == 0 else steps.GENERAL
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
    return form.value, c.digits_per_byte, tuple(step[name] for name in steps.STEP)


# ---- the adjoint and the passes --------------------------------------------------------------


def adjoint_(grad: Leaves, vjp: Leaves, scale: float, beta: float, seed: Leaves) -> None:
    """See ``reference.adjoint_``."""
    for group in _groups(grad=grad, vjp=vjp, seed=seed):
        grads = group["grad"]
        numels = _numels(grads)
        scalars = _as_scalars(grads[0].dtype, scale, beta, 1.0)
        args = (grads, None, _laid_out_like(group["vjp"], grads), group["seed"], numels, *scalars)
        _launch(kernels.adjoint_kernel, _programs(numels), grads[0], *args, BLOCK=BLOCK)


def invert_z_adjoint_y_(
    z: Leaves,
    f: Leaves,
    beta: float,
    grad_y: Leaves,
    vjp: Leaves,
    seed: Leaves,
    *,
    cast: Leaves | None = None,
) -> None:
    """See ``reference.invert_z_adjoint_y_``."""
    groups = _groups(state=z, f=f, grad=grad_y, vjp=vjp, seed=seed, cast=cast)
    _float_pass(groups, beta, (1.0, beta, 1.0 - beta))


def invert_y_adjoint_z_(
    y: Leaves,
    f: Leaves,
    beta: float,
    grad_z: Leaves,
    vjp: Leaves,
    next_beta: float,
    seed: Leaves,
    *,
    cast: Leaves | None = None,
) -> None:
    """See ``reference.invert_y_adjoint_z_``."""
    groups = _groups(state=y, f=f, grad=grad_z, vjp=vjp, seed=seed, cast=cast)
    _float_pass(groups, beta, (1.0 - beta, next_beta, 1.0))


def invert_y_adjoint_z0_(
    y: Leaves, f: Leaves, beta: float, grad_z: Leaves, grad_y: Leaves, vjp: Leaves
) -> None:
    """See ``reference.invert_y_adjoint_z0_``."""
    groups = _groups(state=y, f=f, grad=grad_z, other=grad_y, vjp=vjp)
    _float_pass(groups, beta, (1.0 - beta, 0.0, 1.0))


def invert_z_adjoint_y_exact_(
    z: Leaves,
    digits: Leaves,
    f: Leaves,
    beta: float,
    frac_bits: int,
    tie: int,
    grad_y: Leaves,
    vjp: Leaves,
    seed: Leaves,
    *,
    cast: Leaves | None = None,
) -> None:
    """See ``reference.invert_z_adjoint_y_exact_``."""
    groups = _groups(state=z, digits=digits, f=f, grad=grad_y, vjp=vjp, seed=seed, cast=cast)
    carry = (1.0, effective_beta(beta), contraction(beta).one_minus_beta)
    _exact_pass(groups, (beta, frac_bits, tie), carry)


def invert_y_adjoint_z_exact_(
    y: Leaves,
    digits: Leaves,
    f: Leaves,
    beta: float,
    frac_bits: int,
    tie: int,
    grad_z: Leaves,
    vjp: Leaves,
    next_beta: float,
    seed: Leaves,
    *,
    cast: Leaves | None = None,
) -> None:
    """See ``reference.invert_y_adjoint_z_exact_``."""
    groups = _groups(state=y, digits=digits, f=f, grad=grad_z, vjp=vjp, seed=seed, cast=cast)
    carry = (contraction(beta).one_minus_beta, effective_beta(next_beta), 1.0)
    _exact_pass(groups, (beta, frac_bits, tie), carry)


def invert_y_adjoint_z0_exact_(
    y: Leaves,
    digits: Leaves,
    f: Leaves,
    beta: float,
    frac_bits: int,
    tie: int,
    grad_z: Leaves,
    grad_y: Leaves,
    vjp: Leaves,
) -> None:
    """See ``reference.invert_y_adjoint_z0_exact_``."""
    groups = _groups(state=y, digits=digits, f=f, grad=grad_z, other=grad_y, vjp=vjp)
    _exact_pass(groups, (beta, frac_bits, tie), (contraction(beta).one_minus_beta, 0.0, 1.0))


def _carried(group: Group) -> tuple[Any, ...]:
    """The tensors of a pass that belong to its adjoint."""
    grads = group["grad"]
    vjps = _laid_out_like(group["vjp"], grads)
    return grads, group.get("other"), vjps, group.get("seed")


def _float_pass(groups: Iterator[Group], beta: float, carry: tuple[float, float, float]) -> None:
    for group in groups:
        states = group["state"]
        numels = _numels(states)
        steps = _programs(numels)
        _launch(
            passes.pass_kernel,
            2 * steps,
            states[0],
            *(states, _laid_out_like(group["f"], states), group.get("cast"), numels, steps),
            *(*_as_scalars(states[0].dtype, 1.0 - beta, beta), *_carried(group)),
            *_as_scalars(group["grad"][0].dtype, *carry),
            BLOCK=BLOCK,
        )


def _exact_pass(
    groups: Iterator[Group], numbers: tuple[float, int, int], carry: tuple[float, float, float]
) -> None:
    form, packed, step = exact_step(*numbers)
    for group in groups:
        states = group["state"]
        numels = _numels(states)
        num_bytes, lanes = _lanes(states, numbers[0])
        steps = _programs(num_bytes, lanes)
        _launch(
            passes.exact_pass_kernel,
            steps + _programs(numels),
            states[0],
            *(states, group["digits"], _laid_out_like(group["f"], states), group.get("cast")),
            *(numels, num_bytes, steps, *step, *_carried(group), *carry),
            FORM=form,
            DIGITS_PER_BYTE=packed,
            LANES=lanes,
            BLOCK=BLOCK,
        )


# ---- conversions and the residual ------------------------------------------------------------


def quantize(
    x: Leaves, frac_bits: int, out: Leaves | None = None, *, flag: Tensor | None = None
) -> Tensor | None:
    """See ``reference.quantize``, and for lists, which have `out`, ``reference.quantize_to``."""
    fresh = torch.empty_like(x, dtype=torch.int32) if isinstance(x, Tensor) else None
    for group in _groups(out=out if fresh is None else fresh, x=x):
        some = group["out"]
        numels = _numels(some)
        args = (_laid_out_like(group["x"], some), some, flag, numels, 2.0**frac_bits)
        _launch(kernels.quantize_kernel, _programs(numels), some[0], *args, BLOCK=BLOCK)
    return fresh


def dequantize(state: Leaves, frac_bits: int, dtype: torch.dtype = torch.float32) -> Any:
    """See ``reference.dequantize``."""
    states = [state] if isinstance(state, Tensor) else list(state)
    xs = [torch.empty_like(s, dtype=dtype) for s in states]
    for group in _groups(x=xs, state=states):
        some = group["x"]
        numels = _numels(some)
        args = (_laid_out_like(group["state"], some), some, numels, 2.0**-frac_bits)
        _launch(kernels.dequantize_kernel, _programs(numels), some[0], *args, BLOCK=BLOCK)
    return xs[0] if isinstance(state, Tensor) else xs


def residual(z: Leaves, f: Leaves) -> Tensor:
    """See ``reference.residual``."""
    one = isinstance(z, Tensor)
    zs, fs = ([t] if isinstance(t, Tensor) else list(t) for t in (z, f))
    result = zs[0].new_zeros(len(zs), 2, dtype=torch.float64)
    for group in _groups(z=zs, f=fs, place=result.unbind()):
        _residual(group["z"], group["f"], group["place"])
    return result[0] if one else result


def _residual(zs: tuple[Tensor, ...], fs: tuple[Tensor, ...], places: tuple[Tensor, ...]) -> None:
    """The norms of some leaves, written to their places."""
    numels = _numels(zs)
    chunks = _programs(numels, COLUMNS * ROWS)
    sums = zs[0].new_empty(2 * chunks, dtype=torch.float64)
    args = (zs, _laid_out_like(fs, zs), sums, numels)
    _launch(kernels.residual_kernel, chunks, sums, *args, COLUMNS=COLUMNS, ROWS=ROWS)
    norms = torch.empty(len(zs), 2, dtype=torch.float64, device=sums.device)
    args = (sums, norms, numels)
    _launch(kernels.norms_kernel, len(zs), sums, *args, COLUMNS=COLUMNS, ROWS=ROWS)
    for place, norm in zip(places, norms, strict=True):
        place.copy_(norm)
