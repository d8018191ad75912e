"""Implementations that several benchmarks share: the backends, torch.compile, and `copy_`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

import revdeq_kernels
from bench.core.case import Bind, Call, Plan, Provider, Tensors, binds

# An alternative rounds at most three times where the definition rounds once; the cast rounds again.
ALTERNATIVE_TOLERANCE = 4.0


def measured_backends(plan: Plan) -> list[str]:
    """Backends worth timing: no reference unless asked for, no Triton under its interpreter."""
    names = list(revdeq_kernels.available_backends(plan.device.type))
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    if interpreted or plan.device.type == "cpu":
        names = [name for name in names if name != "triton"]
    return [name for name in names if name != "reference" or plan.reference]


def under_reference(bind: Bind) -> Bind:
    """The same call, made by the reference backend."""

    def bind_reference(tensors: Tensors) -> Call:
        call = bind(tensors)

        def reference_call() -> object:
            with revdeq_kernels.backend("reference"):
                return call()

        return reference_call

    return bind_reference


def backend_providers(plan: Plan, bind: Bind, definition: Bind | None = None) -> list[Provider]:
    """One provider per backend of the project that can run here.

    The reference makes the same call, or that of `definition`: the bits must be the same.
    """
    return [
        Provider(
            name=f"revdeq {name}",
            kind="revdeq",
            bind=bind,
            expected=under_reference(definition or bind),
            scope=partial(revdeq_kernels.backend, name),
        )
        for name in measured_backends(plan)
    ]


def alternative(
    name: str, bind: Bind, expected: Bind, tolerance: float = ALTERNATIVE_TOLERANCE
) -> Provider:
    """A baseline in plain PyTorch; `expected` is the op it replaces."""
    return Provider(name, "alternative", bind, under_reference(expected), tolerance)


def compiled(function: Callable[..., object]) -> Callable[..., object]:
    """torch.compile at its best for fixed shapes; `fullgraph` makes a silent fall-back an error."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def bind_copy(tensors: Tensors) -> Call:
    """`copy_` into touched memory."""
    return partial(tensors["destination"].copy_, tensors["source"])


def bind_copy_definition(tensors: Tensors) -> Call:
    """What `bind_copy` computes."""
    return partial(torch.mul, tensors["source"], 1.0, out=tensors["destination"])


def beside_eager(
    plan: Plan,
    eager: Callable[..., object],
    definition: Callable[..., object],
    arguments: Sequence[Any],
    *others: Provider,
    own: Bind | None = None,
    suffix: str = "",
) -> Iterator[Provider]:
    """`eager`, `others`, `eager` compiled, then the backends of the project.

    All call with the arguments (see `binds`); `own` is the project's call where it is not that of
    the definition.
    """
    expected = binds(definition, *arguments)
    yield alternative(f"eager{suffix}", binds(eager, *arguments), expected)
    yield from others
    yield alternative(f"compile{suffix}", binds(compiled(eager), *arguments), expected)
    yield from backend_providers(plan, own or expected)


COPY_BLOCK = 2**20
COPY_BOUND = Provider("copy_", "bound", bind_copy, bind_copy_definition)


def copy_tensors(bytes_moved: int, device: torch.device) -> Tensors:
    """Tensors whose copy moves as many bytes as the op: half of them read, half written."""
    elements = max(1, bytes_moved // 8)
    # A block again and again: so many random numbers would take longer than the copies.
    block = torch.rand(min(elements, COPY_BLOCK), device=device)
    return {
        "source": block.repeat(-(-elements // block.numel()))[:elements],
        "destination": torch.full((elements,), torch.nan, device=device),
    }
