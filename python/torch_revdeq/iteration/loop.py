"""The iteration forward, and when it stops."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels.composite import EPSILON

from ..evaluation.replay import Evaluate
from ..runtime.host_copy import HostCopy
from ..runtime.transforms import inside_transform, is_from_outside
from .beta import BetaSchedule
from .halting import Halting, by_sample

Masks: TypeAlias = Sequence[Tensor | None]
"""For each leaf the positions that count, by its leading dimensions; None: all."""


class Forward(Protocol):
    """What the loop needs of a pair."""

    @property
    def read_y(self) -> list[Tensor]:
        """What f reads of y."""
        ...

    @property
    def read_z(self) -> list[Tensor]:
        """What f reads of z."""
        ...

    def update_y(self, n: int, f: list[Tensor]) -> None:
        """y <- (1 - beta) y + beta f(z)."""

    def update_z(self, n: int, f: list[Tensor]) -> None:
        """z <- (1 - beta) z + beta f(y)."""


class Stopping:
    """The relative residual, and whether to stop at it.

    The residual of step n is the largest over the leaves of norm(y - f(y)) / (1e-5 + norm(f(y))),
    for the y that the step has just reached: f(y) is evaluated there anyway. On a CPU the step at
    which it falls below tol is the last. On another device a decision waits for the check before
    it, so that the device never runs dry: the solve goes on for one check more, always, and the
    number of steps follows from the data alone.

    With `halting` every sample is measured for itself, and the residual is the largest of theirs:
    below tol once all have halted. `masks` say for each leaf which positions count.
    """

    def __init__(
        self,
        tol: float | None,
        check_every: int,
        process_group: Any,
        device: torch.device,
        halting: Halting | None = None,
        masks: Masks | None = None,
    ) -> None:
        """Take options that were checked."""
        self.tol, self.check_every, self.group = tol, check_every, process_group
        self.halting, self.masks = halting, masks
        self.norms: list[Tensor | None] = []  # of the leaves in the last check; see ``_norms``
        self.lag = 0 if device.type == "cpu" else 1
        self.residual: Tensor | None = None
        self._pending: deque[HostCopy] = deque()

    def due(self, n: int, last: bool) -> bool:
        """Whether step n is measured."""
        return last if self.tol is None else last or (n + 1) % self.check_every == 0

    def measure(self, y: list[Tensor], f: list[Tensor]) -> None:
        """The residual of this step, on the device; none inside a transform of torch.func."""
        if inside_transform() or any(map(is_from_outside, self.masks or ())):
            self._refuse_transform()
            return
        if self.halting is None:
            self.norms = _norms(y, f, self.masks)
            residual = _largest(self.norms, y[0].device)
        else:
            dims = len(self.halting.samples)
            residual = self.halting.judge(sample_residuals(y, f, dims, self.masks))
        if self.group is not None:
            # A maximum over ranks may lose a NaN, and with it what has not arrived.
            residual = residual.nan_to_num(nan=math.inf)
            dist.all_reduce(residual, dist.ReduceOp.MAX, group=self.group)
        self.residual = residual
        if self.tol is not None:
            self._pending.append(HostCopy(residual))

    def _refuse_transform(self) -> None:
        if self.tol is not None:
            raise RuntimeError(
                f"tol: expected None inside a transform of torch.func, got {self.tol}; the number "
                "of steps cannot depend on the data there"
            )

    def reached(self) -> bool:
        """Whether the check that counts now is below tol."""
        if self.tol is None or len(self._pending) <= self.lag:
            return False
        return self._pending.popleft().read() < self.tol


def relative_residual(
    z: Sequence[Tensor], f: Sequence[Tensor], masks: Masks | None = None
) -> Tensor:
    """The largest over the leaves of norm(z - f) / (1e-5 + norm(f)), in float64, on the device."""
    return _largest(_norms(z, f, masks), z[0].device)


def _norms(z: Sequence[Tensor], f: Sequence[Tensor], masks: Masks | None) -> list[Tensor | None]:
    """norm(z - f) and norm(f) of each leaf, in float64; None of one without elements."""
    if masks is not None:
        z, f = _masked(z, masks), _masked(f, masks)
    rows = zip(z, f, strict=True)
    return [rk.residual(*_readable(a, b)) if a.numel() else None for a, b in rows]


def _largest(norms: Sequence[Tensor | None], device: torch.device) -> Tensor:
    ratios = [_ratio(row[0], row[1]) for row in norms if row is not None]
    if not ratios:
        return torch.zeros((), dtype=torch.float64, device=device)
    # NaN stays NaN, and stops nothing.
    return ratios[0] if len(ratios) == 1 else torch.stack(ratios).max()


def _masked(leaves: Sequence[Tensor], masks: Masks) -> list[Tensor]:
    """The leaves with zeros where nothing counts: those change no norm."""
    rows = zip(leaves, masks, strict=True)
    return [x if m is None else torch.where(by_sample(m, x), x.detach(), 0.0) for x, m in rows]


def sample_residuals(
    z: Sequence[Tensor], f: Sequence[Tensor], dims: int = 1, masks: Masks | None = None
) -> Tensor:
    """The same for every sample alone, an index of the first `dims` dimensions.

    Its bits do not depend on strides.
    """
    if masks is not None:
        z, f = _masked(z, masks), _masked(f, masks)
    norm = partial(torch.linalg.vector_norm, dim=1, dtype=torch.float64)
    rows = [(_by_row(a, dims), _by_row(b, dims)) for a, b in zip(z, f, strict=True)]
    of_samples = torch.stack([_ratio(norm(a - b), norm(b)) for a, b in rows]).amax(0)
    return of_samples.view(z[0].shape[:dims])


def _by_row(leaf: Tensor, dims: int) -> Tensor:
    wide = torch.promote_types(leaf.dtype, torch.float32)
    rows = leaf.detach().to(wide).contiguous().unsqueeze(-1).flatten(dims)
    return rows.flatten(0, dims - 1)


def _ratio(distance: Tensor, size: Tensor) -> Tensor:
    return distance / (EPSILON + size)


def _readable(z: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """z in a dtype that ``residual`` takes together with f's."""
    z, f = z.detach(), f.detach()
    if z.dtype == f.dtype or z.dtype in (torch.float32, torch.float64):
        if f.dtype == torch.float64 and z.dtype != torch.float64:
            return z.double(), f
        return z, f
    return z.to(torch.promote_types(f.dtype, torch.float32)), f


def iterate(
    pair: Forward,
    first: list[Tensor],
    evaluate: Evaluate,
    schedule: BetaSchedule,
    stopping: Stopping,
    after_step: Callable[[int], None] | None = None,
) -> int:
    """Run the solve from f(z0), `first`, to its end; the number of steps.

    `after_step` is called after each of them, with the number taken so far.
    """
    f = first
    for n in range(schedule.max_steps):
        last = n + 1 == schedule.max_steps
        if n > 0:
            f = evaluate(2 * n, pair.read_z)
        pair.update_y(n, f)
        f = evaluate(2 * n + 1, pair.read_y)
        due = stopping.due(n, last)
        if due:
            stopping.measure(pair.read_y, f)
        pair.update_z(n, f)
        if after_step is not None:
            after_step(n + 1)
        if due and not last and stopping.reached():
            return n + 1
    return schedule.max_steps
