"""The autograd graph of a pair that the ops update: nodes that carry its gradient, not its values.

The gradient is that of the real numbers that the pair represents: of state' = (1 - beta) state +
beta f, regardless of rounding, and of state' = state for a sample that has halted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..iteration.halting import where_moving
from ..runtime.transforms import is_batched
from ..state.pair import Leaves, Pair
from .adjoint_state import beta_part


class GradientGraph:
    """A pair that the ops update in place, and the autograd nodes that carry its gradient."""

    def __init__(
        self,
        pair: Pair,
        y: Leaves,
        z: Leaves,
        *,
        second: bool,
        first: int = 0,
        save_at: Sequence[int] = (),
    ) -> None:
        """Carry the gradient, starting from the given nodes.

        Args:
            pair: updated by the ops.
            y: nodes of the initial y, from ``begun``.
            z: nodes of the initial z.
            second: whether the gradient may be differentiated again.
            first: the first step that is differentiated; earlier ones carry no gradient.
            save_at: numbers of steps after which z is also an output, in ``saved``.
        """
        self.pair, self.y, self.z, self.second = pair, y, z, second
        self.first, self.save_at = first, save_at
        self.read_y: Leaves = []
        self.read_z: Leaves = []
        self.saved: dict[int, Leaves] = {}

    def update_y(self, n: int, f: Leaves) -> None:
        """y <- (1 - beta) y + beta f(z)."""
        before = self._before(self.pair.y)
        self.pair.update_y(n, [value.detach() for value in f])
        self.y = self._step(n, self.y, f, before)
        self.read_y = attached(self.y, self.pair.read_y)

    def update_z(self, n: int, f: Leaves) -> None:
        """z <- (1 - beta) z + beta f(y)."""
        before = self._before(self.pair.z)
        self.pair.update_z(n, [value.detach() for value in f])
        self.z = self._step(n, self.z, f, before)
        if n + 1 in self.save_at:
            # Before f's node: in the backward pass, this gradient is added to f's gradient of z.
            copies = [leaf.clone() for leaf in self.pair.read_z]
            self.saved[n + 1] = attached(self.z, copies)
        self.read_z = attached(self.z, self.pair.read_z)

    def _before(self, state: Leaves) -> list[Tensor | None]:
        beta = self.pair.schedule.tensor
        if beta is None or not beta.requires_grad:
            return [None] * len(state)
        dtypes = self.pair.layout.adjoint
        return [self.pair.decode(s, dtype) for s, dtype in zip(state, dtypes, strict=True)]

    def _step(self, n: int, nodes: Leaves, f: Leaves, before: list[Tensor | None]) -> Leaves:
        if n < self.first:
            return nodes
        schedule = self.pair.schedule
        strides = [leaf.stride() for leaf in self.pair.y]
        rows = zip(nodes, f, before, strides, strict=True)
        step = schedule.applied(n), schedule.moving(n), self.second
        return [
            _Step.apply((*step, stride), b, node, value, schedule.tensor)
            for node, value, b, stride in rows
        ]


def begun(leaves: Sequence[Tensor], first: int = 0) -> Leaves:
    """Nodes for the leaves of an initial state, detached from it if `first` is not step 0."""
    return [_Begin.apply(leaf.detach() if first else leaf) for leaf in leaves]


def attached(nodes: Leaves, values: Leaves) -> Leaves:
    """The values, with the gradient of the nodes."""
    return [_Attach.apply((value,), node) for node, value in zip(nodes, values, strict=True)]


class _Begin(torch.autograd.Function):
    """From a leaf of the initial state to its node, with the gradient in the adjoint's dtype."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        ctx.dtype = leaf.dtype
        wide = torch.float64 if leaf.dtype == torch.float64 else torch.float32
        # It takes no memory; its value is never read.
        return torch.full((), float("nan"), dtype=wide, device=leaf.device).expand(leaf.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.to(ctx.dtype)


class _Attach(torch.autograd.Function):
    """A value that f reads or the caller gets, attached to the node that carries its gradient."""

    @staticmethod
    def forward(ctx: Any, value: tuple[Tensor], node: Tensor) -> Tensor:
        ctx.dtype = node.dtype
        return value[0].detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad.to(ctx.dtype)


class _Step(torch.autograd.Function):
    """The gradient of one half step: (1 - beta) grad to the state, beta grad to f.

    For a sample that has halted, all of it goes to the state and 0 to f. f's gradient has the
    memory layout of the state, so that sums within f run in one order.
    """

    @staticmethod
    def forward(
        ctx: Any,
        step: tuple[float | Tensor, Tensor | None, bool, tuple[int, ...]],
        before: Tensor | None,
        node: Tensor,
        f: Tensor,
        beta: Tensor | None,
    ) -> Tensor:
        ctx.applied, ctx.moving, ctx.second, ctx.stride = step
        ctx.f = f.dtype
        ctx.set_materialize_grads(False)
        if before is not None:
            ctx.save_for_backward(before, f, beta)
        return node.detach()  # its values are never read

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        if torch.is_grad_enabled() and not ctx.second:
            refuse_second_derivative()
        applied, moving = ctx.applied, ctx.moving
        learned = None
        if ctx.saved_tensors:
            before, f, beta = ctx.saved_tensors
            learned = beta_part(beta, grad, f, before, moving).to(beta.dtype)
        kept = where_moving(moving, (1.0 - applied) * grad, grad)
        seed = where_moving(moving, applied * grad, 0.0)
        if is_batched((grad,)):  # a batched tensor has no memory layout of its own
            return None, None, kept, seed.to(ctx.f), learned
        laid_out = torch.empty_strided(grad.shape, ctx.stride, dtype=ctx.f, device=grad.device)
        return None, None, kept, laid_out.copy_(seed), learned


def refuse_second_derivative() -> NoReturn:
    """RuntimeError: an exact state has only a first derivative."""
    raise RuntimeError(
        "solve: expected one derivative with state='exact', got create_graph=True; a fixed-point "
        "state has no second derivative: choose state=torch.float32 or torch.float64"
    )
