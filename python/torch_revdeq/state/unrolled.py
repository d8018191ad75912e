"""The half steps of an unrolled solve: the pair as differentiable tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from revdeq_kernels.exact_numbers import FIXED_MAX, FIXED_MIN, ONE, RANGE, contraction
from revdeq_kernels.ops.half_step import updated

from ..iteration.beta import as_beta
from ..iteration.halting import where_moving
from ..iteration.residual import Masks, relative_residual, sample_residuals
from .digits import HEADROOM, most_bits
from .pair import Layout, Leaves

ExactNumbers: TypeAlias = tuple[Any, Any, Any, Any]
"""The sign of 1 - beta, the integer q of ``Contraction``, 1 - beta, beta: numbers or tensors."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def cut(t: Tensor) -> Tensor:
    """The values of t, without its gradient.

    Through integers: torch.export removes ``detach`` from a program for inference.
    """
    return t.view(_INTEGERS[t.element_size()]).view(t.dtype)


class Arrived:
    """Which samples have converged, or whether all have; their state stays constant."""

    def __init__(
        self, tol: float, dims: int, lag: int, leaves: Leaves, masks: Masks | None
    ) -> None:
        """None has yet. A sample is an index of the first `dims` dimensions, if there are any."""
        self.tol, self.dims, self.masks = tol, dims, masks
        self.lag = 0 if dims else lag
        shape = leaves[0].shape[:dims]
        self.moving = torch.ones(shape, dtype=torch.bool, device=leaves[0].device)
        self._measured: list[Tensor] = []

    def judge(self, y: Leaves, f: Leaves) -> None:
        """Check after a step. On a device that runs ahead, the previous check decides."""
        if self.dims:
            self._measured.append(sample_residuals(y, f, self.dims, self.masks))
        else:
            self._measured.append(relative_residual(y, f, self.masks))
        if len(self._measured) > self.lag:
            residual = self._measured[-1 - self.lag]
            self.moving = self.moving & ~(residual < self.tol)


class FloatSteps:
    """A pair in a floating-point format: the reference for ``FloatPair``."""

    def __init__(
        self,
        z0: Leaves,
        y0: Leaves | None,
        first: Leaves,
        layout: Layout,
        numbers: Sequence[float],
        learned: Tensor | None,
        bits: int | None,
    ) -> None:
        """The initial pair; `numbers` are the beta of every step, unless beta is `learned`."""
        self.layout, self.numbers, self.learned = layout, numbers, learned
        self.z = [leaf.to(kept) for leaf, kept in zip(z0, layout.state, strict=True)]
        self.y = self.z
        if y0 is not None:
            self.y = [leaf.to(kept) for leaf, kept in zip(y0, layout.state, strict=True)]

    def read(self, state: Leaves) -> Leaves:
        """What f reads of a state."""
        rows = zip(state, self.layout.input, strict=True)
        return [s.view_as(s) if s.dtype == dtype else s.to(dtype) for s, dtype in rows]

    def updated(
        self, state: Leaves, n: int, second: int, f: Leaves, moving: Tensor | None
    ) -> Leaves:
        """The state after half step n of y (`second` 0) or z (1)."""
        return [self._updated(s, n, value, moving) for s, value in zip(state, f, strict=True)]

    def _updated(self, s: Tensor, n: int, f: Tensor, moving: Tensor | None) -> Tensor:
        used = where_stays(moving, f, torch.zeros_like(f))
        if self.learned is not None:
            new = updated(s, used, as_beta(self.learned, s))
        else:
            wide = torch.float64 if s.dtype == torch.float64 else torch.float32
            beta = self.numbers[n]
            new = (1.0 - beta) * s.to(wide) + beta * used.to(wide)
        return where_stays(moving, new.to(s.dtype), s)

    def cut(self) -> None:
        """Let no gradient through to the steps before."""
        self.z, self.y = [cut(t) for t in self.z], [cut(t) for t in self.y]

    def checked(self, leaves: Leaves) -> Leaves:
        """Leaves of the result."""
        return leaves


def where_stays(moving: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the samples that move, or all; otherwise `old`."""
    if moving is None or moving.dim():
        return where_moving(moving, new, old)
    return torch.where(moving, new, old)


class ExactSteps:
    """A pair in fixed point: the reference for ``ExactPair``, without digits.

    Each state has its integers and, in float32, the numbers that they represent. These carry the
    gradient: that of the update that the integers round.
    """

    def __init__(
        self,
        z0: Leaves,
        y0: Leaves | None,
        first: Leaves,
        layout: Layout,
        numbers: Sequence[ExactNumbers],
        learned: Tensor | None,
        bits: int | None,
    ) -> None:
        """The initial pair; `first` is f(z0), `numbers` as in ``FloatSteps``."""
        self.layout, self.numbers, self.learned = layout, numbers, learned
        self.bad = torch.zeros((), dtype=torch.bool, device=z0[0].device)
        self.up: float | Tensor
        self.down: float | Tensor
        if bits is not None:
            self.up, self.down = 2.0**bits, 2.0**-bits
        else:
            self._choose_scale([*z0, *(y0 or ()), *first])
        if learned is not None:
            self._take(learned)
        self.z = [self._begun(leaf) for leaf in z0]
        self.y = self.z if y0 is None else [self._begun(leaf) for leaf in y0]

    def _choose_scale(self, seen: Sequence[Tensor]) -> None:
        """As ``choose_frac_bits``, without reading values: log2 comes from the float's own bits."""
        flat = [cut(t).abs().to(torch.float32).flatten() for t in seen]
        largest = torch.cat([*flat, flat[0].new_ones(1)]).amax()
        pattern = largest.view(torch.int32)
        exponent = (pattern >> 23) - 127 + (pattern & 0x7FFFFF).ne(0)
        bits = (30 - int(math.log2(HEADROOM)) - exponent).clamp(max=most_bits(self.layout.output))
        self.bad = self.bad | ~largest.isfinite() | (bits < 0)
        bits = bits.clamp(min=0)
        self.up = ((127 + bits) << 23).to(torch.int32).view(torch.float32)
        self.down = ((127 - bits) << 23).to(torch.int32).view(torch.float32)

    def _take(self, learned: Tensor) -> None:
        """As ``contraction`` of the value, without reading it."""
        keep = 1.0 - cut(learned).reshape(()).to(torch.float64)
        ratio = 2.0**ONE / keep.abs()
        q = 2 * (ratio / 2.0).clamp(1.0, 2.0**39).round().to(torch.int64)
        self.bad = self.bad | (q <= 2**ONE) | (q > 2**38) | keep.isnan()
        beta = learned.reshape(()).to(torch.float32)
        self.of_learned = (torch.where(keep > 0, 1, -1), q, 1.0 - beta, beta)

    def _begun(self, leaf: Tensor) -> tuple[Tensor, Tensor]:
        fixed = self._fixed(leaf)
        return fixed, self._value(fixed, leaf.to(torch.float32))

    def _fixed(self, f: Tensor) -> Tensor:
        """f on the grid, as int64; numbers out of range are noted."""
        v = cut(f).to(torch.float32) * self.up
        self.bad = self.bad | (~(v.abs() < RANGE)).any()
        v = torch.where(v.isnan(), torch.zeros_like(v), v).clamp(FIXED_MIN, FIXED_MAX)
        return v.round().to(torch.int64)

    def _value(self, fixed: Tensor, soft: Tensor) -> Tensor:
        """The numbers, with the gradient of `soft`, which equals them up to rounding."""
        return fixed.to(torch.float32) * self.down + (soft - cut(soft))

    def read(self, state: Sequence[tuple[Tensor, Tensor]]) -> Leaves:
        """What f reads of a state."""
        rows = zip(state, self.layout.input, strict=True)
        return [value.to(dtype) for (_, value), dtype in rows]

    def updated(
        self,
        state: Sequence[tuple[Tensor, Tensor]],
        n: int,
        second: int,
        f: Leaves,
        moving: Tensor | None,
    ) -> list[tuple[Tensor, Tensor]]:
        """The state after half step n of y (`second` 0) or z (1)."""
        rows, tie = zip(state, f, strict=True), (n + second) % 2
        return [self._updated(s, n, tie, value, moving) for s, value in rows]

    def _updated(
        self, state: tuple[Tensor, Tensor], n: int, tie: int, f: Tensor, moving: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        old, value = state
        used = where_stays(moving, f, torch.zeros_like(f))
        sign, q, keep, beta = self.numbers[n] if self.learned is None else self.of_learned
        fixed = self._fixed(used)
        d = sign * (old - fixed)
        new = fixed + torch.div(2**ONE * d + q // 2 + tie - 1, q, rounding_mode="floor")
        self.bad = self.bad | (new.abs() >= int(RANGE)).any()
        soft = keep * value + beta * used.to(torch.float32)
        made = self._value(new, soft)
        return where_stays(moving, new, old), where_stays(moving, made, value)

    @staticmethod
    def numbers_of(beta: float) -> ExactNumbers:
        """The constants of a step with this beta."""
        c = contraction(beta)
        return c.sign, c.q, c.one_minus_beta, 1.0 - c.one_minus_beta

    def cut(self) -> None:
        """Let no gradient through to the steps before."""
        self.z = [(fixed, cut(value)) for fixed, value in self.z]
        self.y = [(fixed, cut(value)) for fixed, value in self.y]

    def checked(self, leaves: Leaves) -> Leaves:
        """Leaves of the result: NaN where ``solve`` raises."""
        return [leaf.masked_fill(self.bad, math.nan) for leaf in leaves]
