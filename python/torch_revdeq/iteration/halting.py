"""Per-sample halting: which samples still move in a step, as decided in the forward pass.

A sample is an index of the first dimensions of all leaves. Once it has converged its state stays
constant, as if its beta were 0 from the next step on. The decisions of the forward pass are
recorded, and every backward pass and second derivative reads the record.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.host_copy import HostCopy


class Halting:
    """The samples of one solve, each compared with tol at the checks."""

    def __init__(
        self, leaves: Sequence[Tensor], dims: int, tol: float | None, check_every: int
    ) -> None:
        """All samples move; ValueError if the leaves of z0 do not share these dimensions."""
        shapes = [tuple(leaf.shape) for leaf in leaves]
        if any(shape[:dims] != shapes[0][:dims] or len(shape) < dims for shape in shapes):
            which = (
                "dimension 0, that" if dims == 1 else f"each of the first {dims} dimensions, those"
            )
            raise ValueError(
                f"per_sample: expected leaves of z0 with one size in {which} of the "
                f"samples, got shapes {', '.join(map(str, shapes))}; put the batch first in every "
                "leaf, or leave per_sample out"
            )
        assert tol is not None
        self.tol, self.check_every = tol, check_every
        self.samples, self.device = leaves[0].shape[:dims], leaves[0].device
        # On a CPU the host reads it at once. Elsewhere it reads it only for the backward pass.
        self.looks = self.device.type == "cpu"
        self.residuals: Tensor | None = None
        self._moving: list[Tensor | None] = [None]  # by number of checks; None: all move
        self._all: list[HostCopy | None] = [None]

    def moving(self, n: int) -> Tensor | None:
        """Which samples move in step n; None if the host knows that all do."""
        return self._moving[n // self.check_every]

    def all_move(self, n: int) -> bool:
        """Whether all samples move. On a GPU this waits only for the check before step n."""
        at = n // self.check_every
        sent = self._all[at]
        return self._moving[at] is None if sent is None else bool(sent.read())

    def judge(self, residuals: Tensor) -> Tensor:
        """Halt the samples below tol; returns the largest residual of ``kept``.

        NaN does not halt a sample.
        """
        self.residuals = residuals
        moving = ~(residuals < self.tol)
        every = moving.all()
        known = self.looks and bool(every)
        self._moving.append(None if known else moving)
        self._all.append(None if self.looks else HostCopy(every))
        return residuals.max() if residuals.numel() else residuals.new_zeros(())

    def kept(self, residuals: Tensor) -> Tensor:
        """The residuals of moving samples; for halted ones the residual at which they halted."""
        moving = self._moving[-1]
        if moving is None:
            return residuals
        assert self.residuals is not None
        return torch.where(moving, residuals, self.residuals)

    def steps(self, taken: int) -> Tensor:
        """The steps that each sample took, in a solve of `taken` steps; in the samples' shape."""
        masks = [mask for mask in self._moving[1:] if mask is not None]
        passed = torch.full(self.samples, len(self._moving) - 1 - len(masks), device=self.device)
        if masks:
            passed += torch.stack(masks).sum(0)
        return ((passed + 1) * self.check_every).clamp_max(taken)


def where_moving(moving: Tensor | None, new: Tensor, halted: Tensor | float) -> Tensor:
    """`new` for the samples that move, and `halted` for the others. Differentiable."""
    return new if moving is None else torch.where(by_sample(moving, new), new, halted)


def by_sample(moving: Tensor, leaf: Tensor) -> Tensor:
    """The mask in a shape that broadcasts over the leaf."""
    return moving.view((*moving.shape, *(1,) * (leaf.dim() - moving.dim())))
