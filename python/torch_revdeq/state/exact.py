"""A pair in fixed point, in which every step can be reversed bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import revdeq_kernels as rk

from ..iteration.beta import BetaSchedule
from .digits import Digits
from .pair import Group, Layout, Leaves, Pair

EXACT_F = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes of f that an exact state supports."""


class ExactPair(Pair):
    """A pair in fixed point, with the digits of every half step: its inverse is exact."""

    def __init__(
        self,
        y: Leaves,
        z: Leaves,
        layout: Layout,
        schedule: BetaSchedule,
        frac_bits: int,
        digits: Digits,
        flag: Tensor,
        *,
        read_y: Leaves | None = None,
    ) -> None:
        """Take int32 leaves, the memory for digits and the range flag."""
        super().__init__(y, z, layout, schedule, read_y=read_y)
        self.frac_bits, self.digits, self.flag = frac_bits, digits, flag

    @classmethod
    def begin(
        cls,
        y0: Leaves,
        z0: Leaves,
        layout: Layout,
        schedule: BetaSchedule,
        frac_bits: int,
        digits: Digits,
    ) -> ExactPair:
        """The initial pair of a solve."""
        flag = torch.zeros(1, dtype=torch.int32, device=z0[0].device)
        z = [rk.quantize(leaf.detach(), frac_bits, flag=flag) for leaf in z0]
        if y0 is z0:
            y = [leaf.clone() for leaf in z]
        else:
            y = [rk.quantize(leaf.detach(), frac_bits, flag=flag) for leaf in y0]
        return cls(y, z, layout, schedule, frac_bits, digits, flag)

    def from_saved(self, tensors: Sequence[Tensor]) -> ExactPair:
        """The pair after its solve, for the backward pass, in the given tensors."""
        n = len(self.layout.state)
        y, z, buffers = list(tensors[:n]), list(tensors[n : 2 * n]), list(tensors[2 * n :])
        digits = self.digits.in_buffers(buffers)
        args = (self.layout, self.schedule, self.frac_bits, digits, self.flag)
        return type(self)(y, z, *args, read_y=self.read(y))

    def saved_tensors(self) -> Leaves:
        """Both states, and the digits."""
        return [*self.y, *self.z, *self.digits.buffers]

    def release(self) -> None:
        """Release the digits too."""
        super().release()
        self.digits = self.digits.in_buffers(())

    def decode(self, leaf: Tensor, dtype: torch.dtype) -> Tensor:
        """The leaf as floating-point numbers."""
        return rk.dequantize(leaf, self.frac_bits, dtype)

    def encode(self, leaves: Sequence[Tensor]) -> Leaves:
        """The leaves in fixed point."""
        return [rk.quantize(leaf.detach(), self.frac_bits) for leaf in leaves]

    def _call(
        self, op: str, group: Group, state: Any, n: int, second: int, f: Any, cast: Any
    ) -> None:
        planes = self.digits.planes(n, second)
        digits = planes[0] if group is self.only else group.of(planes)
        beta, bits, tie = self.schedule.numbers[n], self.frac_bits, (n + second) & 1
        if op == "update":
            rk.update_exact_(state, digits, self.flag, f, beta, bits, tie, cast=cast)
        else:
            rk.invert_exact_(state, digits, f, beta, bits, tie, cast=cast)

    def _first_pass(self, group: Group, n: int, f: Any, adjoint: Any, cast: Any) -> None:
        planes = self.digits.planes(n, 1)
        digits = planes[0] if group is self.only else group.of(planes)
        beta, bits, tie = self.schedule.numbers[n], self.frac_bits, (n + 1) & 1
        grad_y, vjp, seed = adjoint
        z = group.of(self.z)
        rk.invert_z_adjoint_y_exact_(z, digits, f, beta, bits, tie, grad_y, vjp, seed, cast=cast)

    def _second_pass(self, group: Group, n: int, f: Any, adjoint: Any, cast: Any) -> None:
        grad_z, vjp, seed = adjoint
        betas = self.schedule.numbers
        planes = self.digits.planes(n, 0)
        digits = planes[0] if group is self.only else group.of(planes)
        step = (betas[n], self.frac_bits, n & 1)
        carried = (grad_z, vjp, betas[max(n - 1, 0)], seed)
        rk.invert_y_adjoint_z_exact_(group.of(self.y), digits, f, *step, *carried, cast=cast)

    def _last_pass(self, group: Group, f: Any, adjoint: Any) -> None:
        digits = group.of(self.digits.planes(0, 0))
        step = (self.schedule.numbers[0], self.frac_bits, 0)
        rk.invert_y_adjoint_z0_exact_(group.of(self.y), digits, f, *step, *adjoint)
