"""`trace` and `on_step`: the residual of every step, and a user function called after it.

Neither affects the solve. Residuals stay on the device, and the function gets copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.random import fork_rng

from .residual import Norms, largest

OnStep: TypeAlias = Callable[[int, Tensor, Any], object]
"""Called with the number of steps taken, the last residual, and z."""

Row: TypeAlias = Tensor | Norms
"""One step's residual, or residuals per sample; or the norms from which it is computed."""


class Watch:
    """Collects the residuals of one solve, and calls `on_step`.

    Args:
        trace: keep the residual of every step.
        on_step: called after every step; or None.
        unflatten: builds the state from its leaves.
        device: the device of the solve.
    """

    def __init__(
        self,
        trace: bool,
        on_step: OnStep | None,
        unflatten: Callable[[Sequence[Tensor]], Any],
        device: torch.device,
    ) -> None:
        self.trace, self.on_step, self.unflatten, self.device = trace, on_step, unflatten, device
        self.rows: list[Row] = []  # with trace of all steps, otherwise of the last one

    def note(self, row: Row) -> None:
        """Note what was measured in a step."""
        if not self.trace:
            self.rows.clear()
        self.rows.append(row)

    def after_step(self, steps: int, read_z: Callable[[], Sequence[Tensor]]) -> None:
        """Call the user's function with copies, which it may keep and modify."""
        if self.on_step is None:
            return
        row = self.rows[-1]
        with aside(self.device):
            if not isinstance(row, Tensor):
                residual = largest(row, self.device)
            else:
                residual = row.amax() if row.numel() else row.new_zeros(())
            z = self.unflatten([leaf.detach().clone() for leaf in read_z()])
            self.on_step(steps, residual, z)

    def residuals(self) -> Callable[[], Tensor] | None:
        """A function that stacks the residuals on demand; None if none were kept."""
        return partial(_stacked, self.rows, self.device) if self.trace and self.rows else None


def _stacked(rows: Sequence[Row], device: torch.device) -> Tensor:
    """The residuals of the steps, [steps] or [steps, *samples]."""
    if isinstance(rows[0], Tensor):
        return torch.stack([row for row in rows if isinstance(row, Tensor)])
    leaves = zip(*(row for row in rows if not isinstance(row, Tensor)), strict=True)
    norms = [None if leaf[0] is None else torch.stack(leaf) for leaf in leaves]
    found = largest(norms, device)
    return found if found.dim() else found.expand(len(rows)).clone()  # no leaf has elements


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Around user code that is not part of f: no gradient, and a separate random state."""
    devices = [device] if device.type == "cuda" else []  # in addition to the CPU generator
    with torch.no_grad(), fork_rng(devices=devices):
        yield
