"""The number formats of a state: the dtypes of f they support, and how to create a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..iteration.beta import BetaSchedule
from .digits import CHUNK, Digits, choose_frac_bits
from .exact import EXACT_F, ExactPair
from .floating import FLOAT_STATES, FloatPair
from .pair import Layout, Leaves, Pair

State: TypeAlias = (
    Literal["auto", "exact", "float64", "float32", "bfloat16", "float16"] | torch.dtype
)


@dataclass(eq=False, repr=False)
class Start:
    """The inputs for creating a pair. `y0` is None if it is z0; `first` is f(z0).

    `frac_bits` and the fields after it are for digits: None if the bits depend on the data; whether
    digits are kept for a backward pass; whether the solve may stop before its last step; the first
    step that is differentiated.
    """

    z0: Leaves
    y0: Leaves | None
    first: Sequence[Tensor]
    layout: Layout
    schedule: BetaSchedule
    structure: Any
    frac_bits: int | None
    keep: bool
    may_stop: bool
    first_step: int


class Format:
    """The number format of a state.

    Attributes:
        name: the name in ``Stats.state``.
        stored: the dtype of its leaves.
        takes_f: the dtypes of f that it supports.
        exact: whether every step can be reversed bit for bit.
        plain: whether its steps are plain float operations, which autograd can differentiate and a
            compiler can trace instead of the pair.
    """

    name: str
    stored: torch.dtype
    takes_f: tuple[torch.dtype, ...]
    exact = False
    plain = False

    def layout(
        self, f: Sequence[torch.dtype], read: Sequence[torch.dtype], *, private: bool = False
    ) -> Layout:
        """The dtypes of a pair for what f returns and reads; TypeError for an unsupported f."""
        # A compiler traces the uncached function; for a cached one it warns.
        layout = _new_layout if is_compiling() else _layout
        return layout(self, tuple(f), tuple(read), private)

    def begin(self, start: Start) -> Pair:
        """The initial pair of a solve."""
        raise NotImplementedError

    def unfit(self, f: torch.dtype) -> TypeError:
        """The error for an f of this dtype."""
        raise NotImplementedError


class Exact(Format):
    """Fixed point, with digits for every half step."""

    name, stored, takes_f, exact = "exact", torch.int32, EXACT_F, True

    def begin(self, start: Start) -> ExactPair:
        """With the requested fractional bits, or those that fit z0 and f(z0)."""
        z0, bits, schedule = start.z0, start.frac_bits, start.schedule
        if bits is None:
            seen = {"z0": z0, "y0": start.y0 or (), "f(z0)": start.first}
            bits = choose_frac_bits(start.layout.output, seen, start.structure)
        steps = schedule.max_steps
        chunk = 0 if not start.keep else min(CHUNK, steps) if start.may_stop else steps
        room = {"chunk": chunk, "first": start.first_step}
        digits = Digits([leaf.numel() for leaf in z0], schedule, z0[0].device, **room)
        y0 = z0 if start.y0 is None else start.y0
        return ExactPair.begin(y0, z0, start.layout, schedule, bits, digits)

    def unfit(self, f: torch.dtype) -> TypeError:
        """The error for an f that is wider than its steps support."""
        return TypeError(
            f"state: expected f in float32, bfloat16 or float16 for state='exact', got {f}; choose "
            "state=torch.float64"
        )


class Floating(Format):
    """A floating-point dtype, which loses precision in reconstruction."""

    plain = True

    def __init__(self, dtype: torch.dtype) -> None:
        """One of ``FLOAT_STATES``."""
        self.name, self.stored = _name(dtype), dtype
        self.takes_f = FLOAT_STATES[dtype]

    def begin(self, start: Start) -> FloatPair:
        """Copies in this dtype."""
        y0 = start.z0 if start.y0 is None else start.y0
        return FloatPair.begin(y0, start.z0, start.layout, start.schedule)

    def unfit(self, f: torch.dtype) -> TypeError:
        """The error for an f that is wider than the state."""
        wider = "torch.float64" if f == torch.float64 else "torch.float32"
        return TypeError(
            f"state: expected an f that returns {' or '.join(map(_name, self.takes_f))} with "
            f"state={self.stored}, got {f}; choose state={wider}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


EXACT = Exact()
FORMATS: dict[Any, Format] = {"exact": EXACT, **{dtype: Floating(dtype) for dtype in FLOAT_STATES}}
"""The formats by the values of the option `state`, except "auto"."""


def _new_layout(
    form: Format, f: tuple[torch.dtype, ...], read: tuple[torch.dtype, ...], private: bool
) -> Layout:
    for dtype in f:
        if dtype not in form.takes_f:
            raise form.unfit(dtype)
    return Layout([form.stored] * len(f), list(read), list(f), private)


_layout = lru_cache(maxsize=256)(_new_layout)  # with all that follows from it
