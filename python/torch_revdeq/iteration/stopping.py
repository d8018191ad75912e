"""When a solve stops: measures the residual and compares it with tol."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..runtime.host_copy import HostCopy
from ..runtime.transforms import inside_transform, is_from_outside
from .halting import Halting
from .residual import Masks, Norms, largest, norms_of, nothing_finite, sample_residuals
from .watching import Row, Watch, aside


class StoppingRule:
    """A custom residual for `tol`: ``solve(f, z0, tol=Mine(1e-3))``.

    Subclass it and define ``residual``. A solve stops after a checked step (`check_every`) whose
    residual is below `tol`; on a GPU one check later, as with a number.

    Args:
        tol: above 0.
    """

    def __init__(self, tol: float) -> None:
        if not _is_tolerance(tol):
            raise ValueError(f"tol: expected a number above 0, got {tol!r}; pass one such as 1e-3")
        self.tol = float(tol)

    def begin(self) -> StoppingRule:
        """The rule for one solve: a shallow copy, whose attributes may be assigned."""
        return copy.copy(self)

    def residual(self, y: Any, f: Any) -> Tensor:
        """Return a real 0-dim tensor on the device of the state. NaN does not stop the solve.

        `y` is the state that the step has reached, as f reads it, and `f` is f(y). Both have the
        structure of z0 and no gradient; they are copies, which you may keep or modify. Random
        numbers drawn here do not affect f's.
        """
        raise NotImplementedError(f"{type(self).__name__}.residual: expected to be defined")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(tol={getattr(self, 'tol', None)})"


def begun(rule: StoppingRule) -> StoppingRule:
    """The rule for one solve; TypeError or ValueError for an invalid one."""
    name = type(rule).__name__
    if not _is_tolerance(getattr(rule, "tol", None)):
        raise ValueError(
            f"tol: expected {name}.tol to be a number above 0, got {getattr(rule, 'tol', None)!r}; "
            "call super().__init__(tol) in its __init__"
        )
    first = rule.begin()
    if not isinstance(first, StoppingRule):
        raise TypeError(
            f"tol: expected {name}.begin to return a StoppingRule, got {first!r}; return "
            "copy.copy(self), for example"
        )
    return first


def _is_tolerance(tol: Any) -> bool:
    return isinstance(tol, Real) and not isinstance(tol, bool) and float(tol) > 0


class Stopping:
    """The relative residual, and whether to stop at it.

    The residual of step n is the largest over the leaves of norm(y - f(y)) / (1e-5 + norm(f(y))),
    for the y that the step has just reached, where f(y) is evaluated anyway. On a CPU the step at
    which it falls below tol is the last. On other devices the decision uses the previous check, so
    that the device never idles: the solve always continues for one more check, and the number of
    steps depends only on the data.

    With `halting` every sample is measured separately, and the residual is the largest of theirs:
    below tol once all have halted. `masks` says for each leaf which positions count. A
    ``StoppingRule`` given as tol measures its own residual.
    """

    def __init__(
        self,
        tol: float | StoppingRule | None,
        check_every: int,
        process_group: Any,
        device: torch.device,
        halting: Halting | None = None,
        masks: Masks | None = None,
        unflatten: Callable[[Sequence[Tensor]], Any] = list,
        watch: Watch | None = None,
    ) -> None:
        """Takes checked options. `unflatten` builds the state from its leaves, for a rule."""
        self.rule = begun(tol) if isinstance(tol, StoppingRule) else None
        self.tol = tol.tol if isinstance(tol, StoppingRule) else tol
        self.check_every, self.group, self.unflatten = check_every, process_group, unflatten
        self.halting, self.masks, self.watch = halting, masks, watch
        self.norms: Norms = []  # of the last check
        self.device = device
        self.lag = 0 if device.type == "cpu" else 1
        self.residual: Tensor | None = None
        self.stopped = False  # whether a check below tol has ended the solve
        self._read = 0.0  # the residual that decided last
        self._pending: deque[HostCopy] = deque()
        self._lost: deque[HostCopy] = deque()

    def due(self, n: int, last: bool) -> bool:
        """Whether step n is measured."""
        return last if self.tol is None else last or (n + 1) % self.check_every == 0

    def look(self, y: list[Tensor], f: list[Tensor], *, due: bool) -> None:
        """Measure a step that is `due`, or every step for the watch; none inside torch.func."""
        if inside_transform() or any(map(is_from_outside, self.masks or ())):
            self._refuse_transform()
            return
        row: Row | None = self._measure(y, f) if due else None
        if self.watch is not None:
            self.watch.note(self._between(y, f) if row is None else row)

    def _measure(self, y: list[Tensor], f: list[Tensor]) -> Row:
        """The residual of this step, on the device; it may end the solve."""
        row: Row
        if self.rule is not None:
            row = residual = self._by_rule(self.rule, y, f)
        elif self.halting is None:
            row = self.norms = norms_of(y, f, self.masks)
            if self.tol is None and self.group is None:
                return row  # nothing depends on it: see ``measured``
            residual = largest(row, self.device)
        else:
            row = self.halting.kept(self._of_samples(self.halting, y, f))
            residual = self.halting.judge(row)
        if self.group is not None:
            # A maximum over ranks may lose a NaN, and so a rank that has not converged.
            residual = residual.nan_to_num(nan=math.inf)
            dist.all_reduce(residual, dist.ReduceOp.MAX, group=self.group)
        self.residual = residual
        if self.tol is not None:
            self._pending.append(HostCopy(residual))
        return row

    def _between(self, y: list[Tensor], f: list[Tensor]) -> Row:
        """The residual of a step that is not due; NaN with a rule, which runs only at checks."""
        if self.rule is not None:
            return torch.full((), math.nan, dtype=torch.float64, device=self.device)
        if self.halting is None:
            return norms_of(y, f, self.masks)
        return self.halting.kept(self._of_samples(self.halting, y, f))

    def _of_samples(self, halting: Halting, y: list[Tensor], f: list[Tensor]) -> Tensor:
        return sample_residuals(y, f, len(halting.samples), self.masks)

    def measured(self) -> Tensor | Callable[[], Tensor] | None:
        """The residual of the last check, or a function that computes it on demand."""
        if self.residual is None and self.norms:
            return partial(largest, self.norms, self.device)
        return self.residual

    def _by_rule(self, rule: StoppingRule, y: list[Tensor], f: list[Tensor]) -> Tensor:
        device = y[0].device
        with aside(device):
            parts = [self.unflatten([leaf.detach().clone() for leaf in part]) for part in (y, f)]
            residual = rule.residual(*parts)
        if not isinstance(residual, Tensor) or residual.dim() or residual.is_complex():
            tensor = isinstance(residual, Tensor)
            got = f"{residual.dtype} {tuple(residual.shape)}" if tensor else repr(residual)
            raise TypeError(
                f"tol: expected {type(rule).__name__}.residual to return a real tensor without "
                f"dimensions, got {got}; return x.abs().max(), for example"
            )
        return residual.detach().to(device, torch.float64, copy=True)

    def _refuse_transform(self) -> None:
        if self.tol is not None:
            raise RuntimeError(
                f"tol: expected None inside a transform of torch.func, got {self.tol}; the number "
                "of steps cannot depend on the data there"
            )

    def ends(self, y: Sequence[Tensor], f: Sequence[Tensor], *, exact: bool) -> bool:
        """Whether the solve ends before max_steps: at tol, or with a lost state."""
        return self._reached() or self._is_lost(y, f, exact=exact)

    def _reached(self) -> bool:
        """Whether the check that decides now is below tol."""
        if self.tol is None or len(self._pending) <= self.lag:
            return False
        self._read = self._pending.popleft().read()
        self.stopped = self._read < self.tol
        return self.stopped

    def _is_lost(self, y: Sequence[Tensor], f: Sequence[Tensor], *, exact: bool) -> bool:
        """Whether y and f(y) are lost, so that no further step can reach tol.

        A float state is lost if nothing in it is finite. An exact one has left its range with the
        first NaN or infinity that f returned, and the solve raises. Nothing is read from the device
        unless the residual that ``_reached`` read is not finite. Samples that halt separately,
        ranks, and a ``StoppingRule``, where NaN may mean anything, go on.
        """
        others = (self.halting, self.group, self.rule)
        if math.isfinite(self._read) or any(other is not None for other in others):
            return False
        if exact:
            return True
        self._lost.append(HostCopy(nothing_finite(y, f)))
        return len(self._lost) > self.lag and bool(self._lost.popleft().read())
