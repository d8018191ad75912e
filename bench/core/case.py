"""What a benchmark file gives the harness: cases, each with the implementations to compare."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

Tensors = dict[str, torch.Tensor]
Call = Callable[[], object]
Bind = Callable[[Tensors], Call]
Kind = Literal["bound", "alternative", "revdeq"]

MEBIBYTE = 2**20


def binds(function: Callable[..., object], *arguments: Any) -> Bind:
    """Calls of `function`: a string among the arguments names a tensor of the set.

    A set that holds `cast` has it passed by that name.
    """

    def bind(tensors: Tensors) -> Call:
        values = [tensors[a] if isinstance(a, str) else a for a in arguments]
        named = {"cast": tensors["cast"]} if "cast" in tensors else {}
        return partial(function, *values, **named)

    return bind


@dataclass(frozen=True)
class Provider:
    """One implementation of a case.

    `bind` turns a set of tensors into a call without arguments, so that the timed loop looks
    nothing up. `expected` binds the definition of what that call computes: on equal tensors both
    must leave (and return) equal values, within `tolerance` machine epsilons of the largest
    expected value; 0 asks for the same bits. `scope` is entered around a whole loop of calls,
    never around one.
    """

    name: str
    kind: Kind
    bind: Bind
    expected: Bind
    tolerance: float = 0.0
    scope: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Case:
    """One op on one choice of types and size.

    `make(elements)` returns fresh random tensors; `settle` changes them, before timing only, so
    that thousands of calls in a row stay in the range of ordinary numbers. `bytes` is what the op
    must move through memory in one call: each input read once, each output written once; None
    where the cost of the call itself is measured. Cases that are not `headline` run at the first
    size and the first thread count only. `variant` tells cases of equal op and types apart.
    """

    benchmark: str
    op: str
    dtypes: dict[str, torch.dtype]
    elements: int
    bytes: int | None
    make: Callable[[int], Tensors]
    providers: tuple[Provider, ...]
    beta: float | None = None
    variant: str = ""
    settle: Callable[[Tensors], None] = field(default=lambda tensors: None)
    headline: bool = False

    @property
    def name(self) -> str:
        """What `--only` is matched with."""
        return f"{self.benchmark}.{self.op}"

    @property
    def dtype_names(self) -> dict[str, str]:
        """The types as they are stored and printed."""
        return {role: str(dtype).removeprefix("torch.") for role, dtype in self.dtypes.items()}


@dataclass(frozen=True)
class Plan:
    """What one run measures, and how long."""

    device: torch.device
    sizes_mb: tuple[float, ...]
    threads: tuple[int | None, ...]
    samples: int = 5
    side_samples: int = 3
    sample_seconds: float = 0.1
    cold_bytes: int = 0
    only: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    reference: bool = False
    headline_only: bool = False

    def rounds(self, case: Case) -> int:
        """Samples that each provider of this case takes: fewer beside the headlines."""
        return self.samples if case.headline else self.side_samples

    def wants(self, case: Case) -> bool:
        """Whether `--only` and `--quick` leave this case in."""
        named = not self.only or any(part in case.name for part in self.only)
        return named and (case.headline or not self.headline_only)

    def wants_provider(self, provider: Provider) -> bool:
        """Whether `--providers` leaves this provider in; the bound always stays."""
        named = not self.providers or any(part in provider.name for part in self.providers)
        return named or provider.kind == "bound"


def elements_of(size_mb: float, dtype: torch.dtype) -> int:
    """Elements of a state of `size_mb` MiB."""
    return max(1, int(size_mb * MEBIBYTE) // dtype.itemsize)
