"""One solve as data: what every adjoint needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
from ..runtime.scopes import CHECK, scope
from ..solution import Stats
from ..state.exact import ExactPair
from ..state.formats import Format, Start
from ..state.pair import Layout, Pair


@dataclass(eq=False)
class Outputs:
    """What an adjoint returns: leaves."""

    z: list[Tensor]
    y: list[Tensor]
    saved: list[list[Tensor]]  # z after the steps of `save_at`
    stats: Stats
    aux: Sequence[Tensor] = ()


@dataclass(eq=False)
class Problem:
    """One call of ``solve``, checked. `z0`, `y0` and `tensors` are the caller's own."""

    mapping: FlatFunction
    evaluation: Evaluation
    schedule: BetaSchedule
    stopping: Stopping
    z0: list[Tensor]
    y0: list[Tensor] | None
    tensors: list[Tensor]
    format: Format
    frac_bits: int | None  # None: auto
    adjoint: Adjoint
    check: bool | float
    accumulate_float32: bool
    store_last: int | None = 0  # None: as many as the budget holds
    memory_budget: int | None = None
    save_at: tuple[int, ...] = ()
    backward_steps: int | None = None
    aux: Reduction | None = None  # None: f returns only the state

    @property
    def first_step(self) -> int:
        """The first step that is differentiated."""
        kept = self.backward_steps
        return 0 if kept is None else max(0, self.schedule.max_steps - kept)

    @property
    def exact(self) -> bool:
        """Whether the state is in fixed point."""
        return self.format.exact

    def without_tensors(self) -> Problem:
        """A copy without the caller's tensors."""
        copy = object.__new__(Problem)
        copy.__dict__.update(self.__dict__, z0=[], y0=None, tensors=[])
        return copy

    def auxiliary(self, *, in_place: bool = False, marked: bool = False) -> Auxiliary | None:
        """Collects aux in one forward pass; None if f returns only the state."""
        if self.aux is None:
            return None
        flags = {"in_place": in_place, "marked": marked and self.check is not False}
        return Auxiliary(self.aux, len(self.z0), 2 * self.first_step, **flags)

    def layout(self, *, private: bool = False) -> Layout:
        """The dtypes of the pair, once f has been evaluated; TypeError if they do not fit."""
        f = self.mapping.dtypes
        assert f is not None
        return self.format.layout(f, [leaf.dtype for leaf in self.z0], private=private)

    def pair(self, first: Sequence[Tensor], *, keep: bool, private: bool = False) -> Pair:
        """The initial pair. `first` is f(z0); `keep` the digits for a backward pass."""
        start = Start(
            self.z0,
            self.y0,
            first,
            self.layout(private=private),
            self.schedule,
            self.mapping.structure,
            self.frac_bits,
            keep=keep,
            may_stop=self.stopping.tol is not None,
            first_step=self.first_step,
        )
        return self.format.begin(start)

    def stats(self, pair: Pair, steps: int) -> Stats:
        """The statistics after the forward pass."""
        size = 2 * sum(leaf.numel() * leaf.element_size() for leaf in pair.y)
        stats = Stats(
            steps,
            state=self.format.name,
            adjoint=self.adjoint.name,
            state_bytes=size,
            tol=self.stopping.tol,
        )
        stats._residual, stats._stopped = self.stopping.measured(), self.stopping.stopped
        if self.stopping.watch is not None:
            stats._residuals = self.stopping.watch.residuals()
        if self.stopping.halting is not None:
            stats._sample_steps = self.stopping.halting.steps(steps)
        if isinstance(pair, ExactPair):
            stats.frac_bits = pair.frac_bits
            stats.state_bytes += pair.digits.bytes(steps)
        return stats

    def check_outputs(self, out: object, adjoint: Adjoint) -> None:
        """TypeError or ValueError if `out` does not have the form of a result of this problem."""
        name = f"{type(adjoint).__name__}.solve"
        if not isinstance(out, Outputs) or not isinstance(out.stats, Stats):
            got = "one without statistics" if isinstance(out, Outputs) else type(out).__name__
            raise TypeError(
                f"adjoint: expected {name} to return Outputs, got {got}; return "
                "Outputs(z, y, saved, problem.stats(pair, steps)), or another adjoint's result"
            )
        like = [(leaf.shape, leaf.dtype) for leaf in self.z0]
        parts = {"z": out.z, "y": out.y}
        parts |= {f"saved[{i}]": leaves for i, leaves in enumerate(out.saved)}
        for part, leaves in parts.items():
            found = [(leaf.shape, leaf.dtype) for leaf in leaves]
            if found != like:
                raise ValueError(
                    f"adjoint: expected {name} to return leaves like those of z0 as {part}, "
                    f"{_leaves(like)}, got {_leaves(found)}; convert them"
                )
        if len(out.saved) != len(self.save_at):
            raise ValueError(
                f"adjoint: expected {name} to save {len(self.save_at)} states, got "
                f"{len(out.saved)}; save those of problem.save_at"
            )

    @scope(CHECK)
    def check_range(self, pair: Pair, stats: Stats, outputs: list[Tensor]) -> None:
        """Report the range flag of an exact state: if it is set, the state is wrong."""
        if not isinstance(pair, ExactPair):
            return
        bits, where = pair.frac_bits, ""

        def error() -> RangeError:
            return out_of_range(bits, where)

        if not deferred(pair.flag.device):
            if not pair.flag:
                return
            where = self._beyond(2.0 ** (30 - bits))
        pending = report_check(pair.flag, error, outputs)
        if pending is not None:
            stats._pending.append(pending)

    def spoil_gradients(self, pair: Pair, outputs: Sequence[Tensor]) -> None:
        """Where ``check_range`` is deferred, make the gradients NaN too if it fails."""
        if not isinstance(pair, ExactPair) or not deferred(pair.flag.device):
            return
        flag = pair.flag
        for leaf in outputs:
            if leaf.requires_grad:
                leaf.register_hook(lambda grad: grad.masked_fill(flag.reshape(()) != 0, math.nan))

    def _beyond(self, limit: float) -> str:
        """Where the range was left, in words; empty if unknown."""
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
            if norm >= limit * math.sqrt(leaf.numel()):  # then some element is that large
                return f" ({name} has norm {norm:.3g} at the end of the solve)"
        return ""


def _leaves(forms: Sequence[tuple[torch.Size, torch.dtype]]) -> str:
    return ", ".join(f"{tuple(shape)} {dtype}" for shape, dtype in forms) or "none"


def out_of_range(frac_bits: int, where: str = "") -> RangeError:
    """The error for a set range flag; `where` is as ``Problem._beyond`` says."""
    return RangeError(
        f"solve: expected the state and f below {2.0 ** (30 - frac_bits):.6g}, the range of an "
        f"exact state with frac_bits={frac_bits}, got a larger number, Inf or NaN{where}; pass a "
        "smaller frac_bits, normalize inside f, or choose state=torch.float32 or torch.float64"
    )
