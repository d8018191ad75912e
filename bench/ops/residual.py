"""`residual`: the norms of z - f and of f, which the stopping test of a solve compares.

The op sums in float64. `eager` is what a user writes, in float32; `eager float64` has the precision
of the op. Bytes per element: z and f are read. Half of what `copy_` moves is written, here nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import revdeq_kernels
from bench.core import providers
from bench.core.case import Case, Plan, Provider, Tensors, binds, elements_of
from bench.core.gate import GATE_ELEMENTS

# z and f, of one type: float32, or the 16-bit type that f reads and returns in mixed precision.
TYPES = (torch.float32, torch.bfloat16)


def bytes_moved(elements: int, dtype: torch.dtype) -> int:
    """Bytes one residual must move."""
    return elements * 2 * dtype.itemsize


def eager_residual(z: torch.Tensor, f: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The norms as a user writes them, in `dtype`; where that takes a copy, it is used twice."""
    if f.dtype == dtype:
        return torch.stack([(z - f).norm(), f.norm()])
    copy = f.to(dtype)
    size = copy.norm()
    return torch.stack([copy.sub_(z).norm(), size])


def tolerance(elements: int) -> float:
    """What a norm in one precision may differ from `residual`, in epsilons, to first order.

    With u = epsilon / 2: a difference has a relative error of u, so its square 2 u, and u more for
    the product; a sum of n squares adds at most (n - 1) u in any order. The root halves these and
    adds its own u, in all (n + 4) / 2 u, or (n + 4) / 4 epsilons. In float64 the definition errs by
    as much; in float32 rounding its result adds less than that.
    """
    return 2 * (elements + 4) / 4


def make(elements: int, *, device: torch.device, dtype: torch.dtype) -> Tensors:
    """Random z and f in [-1, 1)."""
    return {
        name: torch.empty(elements, dtype=dtype, device=device).uniform_(-1, 1) for name in "zf"
    }


bind_call = binds(revdeq_kernels.residual, "z", "f")


def bind_definition(dtype: torch.dtype) -> Callable[[Tensors], Callable[[], torch.Tensor]]:
    """The public function, its result rounded to what an alternative returns."""

    def bind(tensors: Tensors) -> Callable[[], torch.Tensor]:
        return lambda: revdeq_kernels.residual(tensors["z"], tensors["f"]).to(dtype)

    return bind


def case_providers(plan: Plan, elements: int) -> Iterator[Provider]:
    """What a user can write, in either precision, then the backends of the project."""
    allowed = tolerance(min(elements, GATE_ELEMENTS))
    for suffix, dtype in (("", torch.float32), (" float64", torch.float64)):
        definition = bind_definition(dtype)
        for name, function in (
            ("eager", eager_residual),
            ("compile", providers.compiled(eager_residual)),
        ):
            call = binds(function, "z", "f", dtype)
            yield providers.alternative(f"{name}{suffix}", call, definition, allowed)
    yield from providers.backend_providers(plan, bind_call)


def cases(plan: Plan, size_mb: float) -> Iterator[Case]:
    """The op on every row of `TYPES`."""
    for dtype in TYPES:
        elements = elements_of(size_mb, dtype)
        yield Case(
            benchmark="residual",
            op="residual",
            dtypes={"z": dtype, "f": dtype},
            elements=elements,
            bytes=bytes_moved(elements, dtype),
            make=partial(make, device=plan.device, dtype=dtype),
            providers=tuple(case_providers(plan, elements)),
        )
