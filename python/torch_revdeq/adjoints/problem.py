"""A solve taken apart: what every way of differentiating it needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ..evaluation.adjoint import Adjoint
from ..evaluation.auxiliary import Auxiliary, Reduction
from ..evaluation.flat_function import FlatFunction
from ..evaluation.places import first_not_finite, largest, leaf_names
from ..evaluation.replay import Evaluation
from ..iteration.beta import BetaSchedule
from ..iteration.stopping import Stopping
from ..runtime.deferred import RangeError, deferred, report_check
from ..solution import Stats
from ..state.digits import CHUNK, Digits, choose_frac_bits
from ..state.exact import EXACT_F, ExactPair
from ..state.floating import FLOAT_STATES, FloatPair
from ..state.pair import Layout, Pair

State: TypeAlias = Literal["auto", "exact"] | torch.dtype


@dataclass
class Outputs:
    """What a way of differentiating returns: leaves."""

    z: list[Tensor]
    y: list[Tensor]
    saved: list[list[Tensor]]  # z after the steps of `save_at`
    stats: Stats
    aux: Sequence[Tensor] = ()


@dataclass
class Problem:
    """One call of ``solve``, checked. `z0`, `y0` and `tensors` are the caller's own."""

    mapping: FlatFunction
    evaluation: Evaluation
    schedule: BetaSchedule
    stopping: Stopping
    z0: list[Tensor]
    y0: list[Tensor] | None
    tensors: list[Tensor]
    state: torch.dtype | None  # None: exact
    frac_bits: int | None  # None: auto
    adjoint: Adjoint
    check: bool | float
    wide: bool
    store_last: int | None = 0  # None: as many as the budget holds
    memory_budget: int | None = None
    save_at: tuple[int, ...] = ()
    backward_steps: int | None = None
    aux: Reduction | None = None  # None: f returns the state alone

    @property
    def first_step(self) -> int:
        """The first step that is differentiated."""
        kept = self.backward_steps
        return 0 if kept is None else max(0, self.schedule.max_steps - kept)

    @property
    def exact(self) -> bool:
        """Whether the state is in fixed point."""
        return self.state is None

    def without_tensors(self) -> Problem:
        """A copy that holds none of the caller's tensors."""
        copy = object.__new__(Problem)
        copy.__dict__.update(self.__dict__, z0=[], y0=None, tensors=[])
        return copy

    def auxiliary(self, *, in_place: bool = False, marked: bool = False) -> Auxiliary | None:
        """What takes aux in, in one forward pass; None where f returns the state alone."""
        if self.aux is None:
            return None
        flags = {"in_place": in_place, "marked": marked and self.check is not False}
        return Auxiliary(self.aux, len(self.z0), 2 * self.first_step, **flags)

    def layout(self, *, private: bool = False) -> Layout:
        """The dtypes of the pair, once f has been evaluated; TypeError where they do not fit."""
        f = self.mapping.dtypes
        assert f is not None
        return layout_of(f, [leaf.dtype for leaf in self.z0], self.state, private=private)

    def pair(self, first: Sequence[Tensor], *, keep: bool, private: bool = False) -> Pair:
        """The pair at the start. `first` is f(z0); `keep` the digits for a way back."""
        layout = self.layout(private=private)
        y0 = self.z0 if self.y0 is None else self.y0
        if self.state is not None:
            return FloatPair.begin(y0, self.z0, layout, self.schedule)
        bits = self.frac_bits
        if bits is None:
            seen = {"z0": self.z0, "y0": self.y0 or (), "f(z0)": first}
            bits = choose_frac_bits(layout.f, seen, self.mapping.structure)
        numels = [leaf.numel() for leaf in self.z0]
        steps = self.schedule.max_steps
        chunk = 0 if not keep else steps if self.stopping.tol is None else min(CHUNK, steps)
        room = {"chunk": chunk, "first": self.first_step}
        digits = Digits(numels, self.schedule, self.z0[0].device, **room)
        return ExactPair.begin(y0, self.z0, layout, self.schedule, bits, digits)

    def stats(self, pair: Pair, steps: int) -> Stats:
        """What there is to say after the forward pass."""
        size = 2 * sum(leaf.numel() * leaf.element_size() for leaf in pair.y)
        stats = Stats(
            steps,
            state="exact" if self.state is None else str(self.state).removeprefix("torch."),
            adjoint=self.adjoint.name,
            state_bytes=size,
            tol=self.stopping.tol,
        )
        stats._residual = self.stopping.residual
        if self.stopping.halting is not None:
            stats._sample_steps = self.stopping.halting.steps(steps)
        if isinstance(pair, ExactPair):
            stats.frac_bits = pair.frac_bits
            stats.state_bytes += pair.digits.bytes(steps)
        return stats

    def check_range(self, pair: Pair, stats: Stats, outputs: list[Tensor]) -> None:
        """Deal with the flag of an exact state: its numbers are wrong if it is raised."""
        if not isinstance(pair, ExactPair):
            return
        bits, where = pair.frac_bits, ""

        def error() -> RangeError:
            return out_of_range(bits, where)

        if not deferred(pair.flag.device) and bool(pair.flag):
            where = self._beyond(2.0 ** (30 - bits))
        pending = report_check(pair.flag, error, outputs)
        if pending is not None:
            stats._pending.append(pending)

    def _beyond(self, limit: float) -> str:
        """What is known of where the range was left, and nothing where that is not known."""
        structure, count = self.mapping.structure, len(self.z0)
        start = {"z0": self.z0, "y0": self.y0 or ()}
        found = first_not_finite(start, structure)
        if found is not None:
            return f" ({found})"
        sizes = [
            leaf.detach().abs().max() for part in start.values() for leaf in part if leaf.numel()
        ]
        if any(size >= limit for size in sizes):
            return f" ({largest(start, structure)})"
        rows = zip(leaf_names("f", structure, count), self.stopping.norms, self.z0, strict=False)
        for name, row, leaf in rows:
            if row is None:
                continue
            norm = float(row[1])  # of f at the last y
            if not math.isfinite(norm):
                kind = "NaN" if math.isnan(norm) else "Inf"
                return f" ({name} holds {kind} at the end of the solve)"
            if norm >= limit * math.sqrt(leaf.numel()):  # then one of them is that large
                return f" ({name} has norm {norm:.3g} at the end of the solve)"
        return ""


def layout_of(
    f: Sequence[torch.dtype],
    read: Sequence[torch.dtype],
    state: torch.dtype | None,
    *,
    private: bool = False,
) -> Layout:
    """The dtypes of a pair in this state, for what f returns and reads; TypeError for another f."""
    return _layout(tuple(f), tuple(read), state, private)


@lru_cache(maxsize=256)  # with all that follows from it
def _layout(
    f: tuple[torch.dtype, ...],
    read: tuple[torch.dtype, ...],
    state: torch.dtype | None,
    private: bool,
) -> Layout:
    for dtype in f:
        if state is None and dtype not in EXACT_F:
            raise TypeError(
                f"state: expected f in float32, bfloat16 or float16 for state='exact', got "
                f"{dtype}; choose state=torch.float64"
            )
        if state is not None and dtype not in FLOAT_STATES[state]:
            wider = "torch.float64" if dtype == torch.float64 else "torch.float32"
            raise TypeError(
                f"state: expected f in one of {_names(FLOAT_STATES[state])} for "
                f"state={state}, got {dtype}; choose state={wider}"
            )
    kept = torch.int32 if state is None else state
    return Layout([kept] * len(f), list(read), list(f), private)


def out_of_range(frac_bits: int, where: str = "") -> RangeError:
    """What a raised flag means, and where it was raised as far as that is known."""
    return RangeError(
        f"solve: expected the state and f below {2.0 ** (30 - frac_bits):.6g}, the range of an "
        f"exact state with frac_bits={frac_bits}, got a larger number, Inf or NaN{where}; pass a "
        "smaller frac_bits, normalize inside f, or choose state=torch.float32 or torch.float64"
    )


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
