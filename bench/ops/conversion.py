"""`quantize` and `dequantize`: into fixed point at the start of a solve, out of it at the end.

Both return a new tensor, so on a CPU every provider also pays for the pages of its result.
Bytes per element: the input is read, the output is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import revdeq_kernels
from bench.core import providers
from bench.core.case import Case, Plan, Tensors, elements_of

FRAC_BITS = 20


def bytes_moved(elements: int, source: torch.dtype, result: torch.dtype) -> int:
    """Bytes one conversion must move."""
    return elements * (source.itemsize + result.itemsize)


def eager_quantize(x: torch.Tensor, frac_bits: int) -> torch.Tensor:
    """The conversion as a user writes it, without a care for NaN and range."""
    return (x * 2.0**frac_bits).round_().to(torch.int32)


def eager_dequantize(state: torch.Tensor, frac_bits: int) -> torch.Tensor:
    """The conversion as a user writes it."""
    return state.to(torch.float32).mul_(2.0**-frac_bits)


EAGER: dict[str, Callable[..., torch.Tensor]] = {
    "quantize": eager_quantize,
    "dequantize": eager_dequantize,
}


def make(elements: int, *, op: str, device: torch.device) -> Tensors:
    """Random floats in [-1, 1), or the fixed-point state made of them."""
    x = torch.empty(elements, device=device).uniform_(-1, 1)
    return {"x": x if op == "quantize" else x.mul_(2**FRAC_BITS).round_().to(torch.int32)}


ARGUMENTS = ("x", FRAC_BITS)


def cases(plan: Plan, size_mb: float) -> Iterator[Case]:
    """float32 to int32 and back."""
    elements = elements_of(size_mb, torch.float32)
    for op, eager in EAGER.items():
        definition = getattr(revdeq_kernels, op)
        every = providers.beside_eager(plan, eager, definition, ARGUMENTS)
        source, result = torch.float32, torch.int32
        if op == "dequantize":
            source, result = result, source
        yield Case(
            benchmark="conversion",
            op=op,
            dtypes={"x": source, "result": result},
            elements=elements,
            bytes=bytes_moved(elements, source, result),
            make=partial(make, op=op, device=plan.device),
            providers=tuple(every),
        )
