"""Helpers shared by launches of the Triton kernels: grouping leaves, programs, and numbers.

Leaves of the same kind to Triton's compiler share a launch, up to LEAVES_AT_ONCE of them.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator, Sequence
from ctypes import c_float
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from revdeq_kernels.core.memory import same_strides
from revdeq_kernels.core.samples import LEAVES_AT_ONCE
from revdeq_kernels.exact_numbers import BLOCK_LANES, ONE, contraction, form_of

from ..device.exact_step import GENERAL, INTEGER, SHIFT, ExactStep
from ..device.half_step import OPTIONS
from ..kernels.half_step import lanes

BLOCK = 1024
Leaves = Tensor | Sequence[Tensor]
Group = dict[str, tuple[Tensor, ...]]


def grouped(**lists: Leaves | None) -> Iterator[Group]:
    """The leaves of each launch, by argument; empty leaves are skipped."""
    given = {
        n: [v] if isinstance(v, Tensor) else list(v) for n, v in lists.items() if v is not None
    }
    alike: dict[tuple[Any, ...], list[int]] = {}
    for k, leaf in enumerate(zip(*given.values(), strict=True)):
        if leaf[0].numel() > 0:
            alike.setdefault(_kind(leaf), []).append(k)
    for leaves in alike.values():
        for first in range(0, len(leaves), LEAVES_AT_ONCE):
            chosen = leaves[first : first + LEAVES_AT_ONCE]
            yield {name: tuple(values[k] for k in chosen) for name, values in given.items()}


def _kind(leaf: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """The kind for which Triton compiles a kernel: every mix of kinds would be another kernel."""
    numel = leaf[0].numel()
    return numel == 1, numel % 16 == 0, *((t.dtype, t.data_ptr() % 16 == 0) for t in leaf)


def programs_of(sizes: Sequence[int], block: int = BLOCK) -> int:
    """How many programs the leaves need; no program spans two leaves."""
    return sum(-(-size // block) for size in sizes)


def numels_of(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """The number of elements of each tensor."""
    return tuple(t.numel() for t in tensors)


def laid_out_like(fs: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each f in the memory order of its state: itself, or a copy if its strides differ."""
    return tuple(
        f if same_strides(f, state) else torch.empty_like(state, dtype=f.dtype).copy_(f)
        for f, state in zip(fs, states, strict=True)
    )


def launch(kernel: Any, programs: int, lead: Tensor, *args: Any, **constants: Any) -> None:
    """Launch on the device of `lead`, without fused multiply-adds."""
    device = torch.cuda.device(lead.device) if lead.is_cuda else contextlib.nullcontext()
    with device:
        kernel[(programs,)](*args, **constants, **OPTIONS)


def as_scalars(dtype: torch.dtype, *values: float) -> tuple[float | int, ...]:
    """Numbers in the form that the kernels expect: float32, or the bits of float64.

    A launch rounds a Python float to float32, but Triton's interpreter does not.
    """
    if dtype != torch.float64:
        return tuple(c_float(x).value for x in values)
    return tuple(struct.unpack("<q", struct.pack("<d", x))[0] for x in values)


def lanes_of(states: Sequence[Tensor], beta: float) -> tuple[tuple[int, ...], int]:
    """The bytes of digits of each leaf, and how many bytes a program processes."""
    c = contraction(beta)
    num_bytes = tuple(c.blocks(state.numel()) * BLOCK_LANES for state in states)
    return num_bytes, lanes(c.digits_per_byte)


@lru_cache(maxsize=1024)
def step_numbers(beta: float, frac_bits: int, tie: int) -> tuple[int, int, ExactStep]:
    """The form, the digits per byte and the numbers of an exact half step."""
    c = contraction(beta)
    form = {"shift": SHIFT, "integer": INTEGER, "general": GENERAL}[form_of(beta)[0]]
    step = ExactStep(
        scale=2.0**frac_bits,
        unscale=2.0**-frac_bits,
        negate=0 if c.sign > 0 else -1,
        base=c.base,
        log2_base=math.ceil(math.log2(c.base)),
        inverse=-(-(2**16) // c.base),
        reciprocal=(2**62 // c.q + 1) // 2,
        q_whole=c.q >> ONE,
        q_part=c.q & (2**ONE - 1),
        half=c.q // 2 + tie - 1,
    )
    return form.value, c.digits_per_byte, step
