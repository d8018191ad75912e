"""What a user watches of a solve while it runs: the residual of every step, and their own function.

Neither has a part in the solve. Residuals stay on the device, and the function gets copies.
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
"""Called with the number of steps taken, their last residual, and z."""

Row: TypeAlias = Tensor | Norms
"""Of one step: its residual, or those of its samples; or the norms that it is made of."""


class Watch:
    """The residuals of one solve, as they come, and the calls of `on_step`.

    Args:
        trace: keep the residual of every step.
        on_step: called after every step; None: nothing is.
        unflatten: makes the state of its leaves.
        device: the solve's.
    """

    def __init__(
        self,
        trace: bool,
        on_step: OnStep | None,
        unflatten: Callable[[Sequence[Tensor]], Any],
        device: torch.device,
    ) -> None:
        self.trace, self.on_step, self.unflatten, self.device = trace, on_step, unflatten, device
        self.rows: list[Row] = []  # of all steps with a trace, otherwise of the last one

    def note(self, row: Row) -> None:
        """What was measured in a step."""
        if not self.trace:
            self.rows.clear()
        self.rows.append(row)

    def after_step(self, steps: int, read_z: Callable[[], Sequence[Tensor]]) -> None:
        """Call the user's function. It gets copies, which it may keep and write to."""
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
        """What puts the residuals together when somebody asks; None where none were kept."""
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
    """Around code of the user's that is no part of f: no gradient, random numbers of its own."""
    devices = [device] if device.type == "cuda" else []  # beside the generator of the CPU
    with torch.no_grad(), fork_rng(devices=devices):
        yield
