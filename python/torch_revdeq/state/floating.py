"""A pair in a floating-point format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels.core.checks import F_DTYPES

from ..iteration.beta import BetaSchedule, as_beta
from .pair import Group, Layout, Leaves, Pair

FLOAT_STATES = dict(sorted(F_DTYPES.items(), key=lambda row: -row[0].itemsize))
"""The dtypes of f that a float state supports: those of ``update_``, the widest state first."""


class FloatPair(Pair):
    """A pair in a floating-point format. Its inverse loses precision at every step."""

    @classmethod
    def begin(cls, y0: Leaves, z0: Leaves, layout: Layout, schedule: BetaSchedule) -> FloatPair:
        """The pair at the start of a solve."""
        y = [leaf.detach().to(kept, copy=True) for leaf, kept in zip(y0, layout.state, strict=True)]
        z = [leaf.detach().to(kept, copy=True) for leaf, kept in zip(z0, layout.state, strict=True)]
        return cls(y, z, layout, schedule)

    def from_saved(self, tensors: Sequence[Tensor]) -> FloatPair:
        """The pair after its solve, for the backward pass, in the given tensors."""
        n = len(self.layout.state)
        y, z = list(tensors[:n]), list(tensors[n:])
        return type(self)(y, z, self.layout, self.schedule, read_y=self.read(y))

    def decode(self, leaf: Tensor, dtype: torch.dtype) -> Tensor:
        """The leaf in another dtype."""
        return leaf.to(dtype, copy=True)

    def encode(self, leaves: Sequence[Tensor]) -> Leaves:
        """The leaves in the dtype of the state."""
        rows = zip(leaves, self.layout.state, strict=True)
        return [leaf.detach().to(dtype) for leaf, dtype in rows]

    def _call(
        self, op: str, group: Group, state: Any, n: int, second: int, f: Any, cast: Any
    ) -> None:
        half_step = rk.update_ if op == "update" else rk.invert_
        beta = self.schedule.beta(n)
        if not isinstance(beta, Tensor):
            half_step(state, f, beta, cast=cast)
            return
        # A tensor of betas goes with one leaf at a time.
        states, fs = ([x] if isinstance(x, Tensor) else x for x in (state, f))
        casts = [cast] * len(states) if cast is None or isinstance(cast, Tensor) else cast
        for s, value, copy in zip(states, fs, casts, strict=True):
            half_step(s, value, as_beta(beta.detach(), s), cast=copy)

    def _first_pass(self, group: Group, n: int, f: Any, adjoint: Any, cast: Any) -> None:
        rk.invert_z_adjoint_y_(group.of(self.z), f, self.schedule.numbers[n], *adjoint, cast=cast)

    def _second_pass(self, group: Group, n: int, f: Any, adjoint: Any, cast: Any) -> None:
        grad_z, vjp, seed = adjoint
        betas = self.schedule.numbers
        y, before = group.of(self.y), betas[max(n - 1, 0)]
        rk.invert_y_adjoint_z_(y, f, betas[n], grad_z, vjp, before, seed, cast=cast)

    def _last_pass(self, group: Group, f: Any, adjoint: Any) -> None:
        rk.invert_y_adjoint_z0_(group.of(self.y), f, self.schedule.numbers[0], *adjoint)
