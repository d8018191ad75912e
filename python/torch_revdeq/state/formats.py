"""The formats of a state: what keeps y and z, which f they take, and how a pair begins."""

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


@dataclass
class Start:
    """What a pair begins with. `y0` is None where it is z0; `first` is f(z0).

    `frac_bits` and what follows it are for digits: None where the bits follow from the data;
    whether they are kept for a way back; whether the solve may stop before its last step; the first
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
    """What keeps the numbers of a state.

    Attributes:
        name: what ``Stats.state`` calls it.
        stored: the dtype of its leaves.
        takes_f: the dtypes of f that its steps take.
        exact: whether every step can be taken back bit for bit.
        plain: whether its steps are those of the float ops, which autograd differentiates and a
            compiler traces in place of the pair.
    """

    name: str
    stored: torch.dtype
    takes_f: tuple[torch.dtype, ...]
    exact = False
    plain = False

    def layout(
        self, f: Sequence[torch.dtype], read: Sequence[torch.dtype], *, private: bool = False
    ) -> Layout:
        """The dtypes of a pair for what f returns and reads; TypeError for another f."""
        # A compiler traces what stands behind a cache, and warns of results that could be wrong.
        layout = _new_layout if is_compiling() else _layout
        return layout(self, tuple(f), tuple(read), private)

    def begin(self, start: Start) -> Pair:
        """The pair at the start of a solve."""
        raise NotImplementedError

    def unfit(self, f: torch.dtype) -> TypeError:
        """The error for an f of this dtype."""
        raise NotImplementedError


class Exact(Format):
    """Fixed point, with a digit for every half step."""

    name, stored, takes_f, exact = "exact", torch.int32, EXACT_F, True

    def begin(self, start: Start) -> ExactPair:
        """With the fractional bits that were asked for, or that hold z0 and f(z0)."""
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
        """Wider than its steps take."""
        return TypeError(
            f"state: expected f in float32, bfloat16 or float16 for state='exact', got {f}; choose "
            "state=torch.float64"
        )


class Floating(Format):
    """A floating-point dtype, which loses precision on the way back."""

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
        """Wider than the state."""
        wider = "torch.float64" if f == torch.float64 else "torch.float32"
        return TypeError(
            f"state: expected f in one of {', '.join(map(_name, self.takes_f))} for "
            f"state={self.stored}, got {f}; choose state={wider}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


EXACT = Exact()
FORMATS: dict[Any, Format] = {"exact": EXACT, **{dtype: Floating(dtype) for dtype in FLOAT_STATES}}
"""By the values of the option `state`, "auto" aside."""


def _new_layout(
    form: Format, f: tuple[torch.dtype, ...], read: tuple[torch.dtype, ...], private: bool
) -> Layout:
    for dtype in f:
        if dtype not in form.takes_f:
            raise form.unfit(dtype)
    return Layout([form.stored] * len(f), list(read), list(f), private)


_layout = lru_cache(maxsize=256)(_new_layout)  # with all that follows from it
