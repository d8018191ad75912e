"""`update_` with a beta for every channel, which is the last dimension or one in the middle.

The alternative is `state.lerp_(f, beta)`, which broadcasts beta and needs f in the state's type.
Bytes: those of the half step (half_step.py), and each beta once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import revdeq_kernels
from bench.core import providers
from bench.core.case import Case, Plan, Provider, Tensors, binds, elements_of
from bench.ops import half_step

# (channels, elements side by side that share a beta): tokens of a transformer, images of 64 x 64.
ROWS = ((1024, 1), (64, 4096))
FLOAT32 = torch.float32


def bytes_moved(elements: int, channels: int) -> int:
    """Bytes one half step must move."""
    step = half_step.bytes_moved(elements, FLOAT32, FLOAT32, None)
    return step + channels * FLOAT32.itemsize


def whole_rows(elements: int, channels: int, inner: int) -> int:
    """As many rows of all channels as fit into `elements`, at least one."""
    return max(1, elements // (channels * inner))


def eager_update(state: torch.Tensor, f: torch.Tensor, beta: torch.Tensor) -> None:
    """The update as a user writes it."""
    state.lerp_(f, beta)


def make(elements: int, *, device: torch.device, channels: int, inner: int) -> Tensors:
    """Random state and f in [-1, 1), and betas away from 0 and 1."""
    rows = whole_rows(elements, channels, inner)
    shape, place = ((rows, channels), (channels,))
    if inner > 1:
        shape, place = (*shape, inner), (channels, 1)
    return {
        "state": torch.empty(shape, device=device).uniform_(-1, 1),
        "f": torch.empty(shape, device=device).uniform_(-1, 1),
        "beta": torch.empty(place, device=device).uniform_(0.1, 0.9),
    }


ARGUMENTS = ("state", "f", "beta")


def case_providers(plan: Plan) -> Iterator[Provider]:
    """What a user can write, then the backends of the project."""
    definition = binds(revdeq_kernels.update_, *ARGUMENTS)
    compiled = providers.compiled(eager_update)
    yield providers.alternative("lerp_", binds(torch.Tensor.lerp_, *ARGUMENTS), definition)
    yield providers.alternative("compile", binds(compiled, *ARGUMENTS), definition)
    yield from providers.backend_providers(plan, definition)


def cases(plan: Plan, size_mb: float) -> Iterator[Case]:
    """The op on every row of `ROWS`."""
    for channels, inner in ROWS:
        rows = whole_rows(elements_of(size_mb, FLOAT32), channels, inner)
        elements = rows * channels * inner
        yield Case(
            benchmark="channels",
            op="update_.channels",
            dtypes={"state": FLOAT32, "f": FLOAT32},
            elements=elements,
            bytes=bytes_moved(elements, channels),
            make=partial(make, device=plan.device, channels=channels, inner=inner),
            providers=tuple(case_providers(plan)),
            variant=f"{channels} last" if inner == 1 else f"{channels} x {inner}",
            settle=half_step.settle,
        )
