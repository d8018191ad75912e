"""The gradients with respect to y and z, carried from step to step in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..iteration.halting import by_sample, where_moving
from ..state.pair import Leaves, Pair


class AdjointState:
    """grad_y, grad_z and the seed of the next product.

    In step n, with b = beta_n: seed = b grad_z; then ``after_y`` adds the product at y, and
    ``after_z`` the one at z. Each also reconstructs its half of the pair, in one merged pass of the
    op layer. These passes take one factor for all samples: a step in which some samples have halted
    is reversed by plain operations with the same rounding.
    """

    def __init__(
        self, pair: Pair, grad_z: Sequence[Tensor | None], grad_y: Sequence[Tensor | None]
    ) -> None:
        """Begin with the gradients of the final state."""
        self.pair = pair
        adjoint = pair.layout.adjoint
        self.grad_z = _begin(pair.z, grad_z, adjoint)
        self.grad_y = _begin(pair.y, grad_y, adjoint)
        rows = zip(self.grad_z, pair.layout.output, strict=True)
        self.seed = [torch.empty_like(grad, dtype=f) for grad, f in rows]
        self.never_halts = pair.schedule.halting is None

    def begin(self, last: int) -> None:
        """The first seed: beta grad_z of the last step."""
        self._seed(self.grad_z, last)

    def inject(self, n: int, grads: Sequence[Tensor | None]) -> None:
        """Add a gradient that arrives at z after step n from outside, before step n is reversed."""
        for grad, came in zip(self.grad_z, grads, strict=True):
            if came is not None:
                grad.add_(came)
        self._seed(self.grad_z, n)

    def after_y(self, n: int, f: Leaves, vjp: Leaves) -> None:
        """Reconstruct z; grad_y <- grad_y + vjp, its seed, and its share of the step before."""
        pair = self.pair
        if self._merges(n):
            pair.invert_z_adjoint_y(n, f, self.grad_y, vjp, self.seed)
            return
        pair.invert_z(n, f)
        self._learn(n, self.grad_z, f, pair.z)
        for grad, product in zip(self.grad_y, vjp, strict=True):
            grad.add_(product)
        self._seed(self.grad_y, n)  # its share is taken in ``after_z``, which learns from all of it

    def after_z(self, n: int, f: Leaves, vjp: Leaves, *, joined: bool) -> None:
        """Reconstruct y; grad_z <- (1 - beta) grad_z + vjp, and its seed.

        In the first step of a solve that began with y = z (`joined`), grad_y is added to grad_z.
        """
        pair = self.pair
        if self._merges(n):
            if joined:
                pair.invert_y_adjoint_z0(f, self.grad_z, self.grad_y, vjp)
            else:
                pair.invert_y_adjoint_z(n, f, self.grad_z, vjp, self.seed)
            return
        pair.invert_y(n, f)
        self._learn(n, self.grad_y, f, pair.y)
        for grad_z, grad_y, product in zip(self.grad_z, self.grad_y, vjp, strict=True):
            self._keep(grad_y, n)
            self._keep(grad_z, n)
            if joined:
                grad_z.add_(grad_y)
            grad_z.add_(product)
        if n > 0:
            self._seed(self.grad_z, n - 1)

    def _merges(self, n: int) -> bool:
        """Whether the merged passes can reverse step n: the same for both half steps."""
        return self.never_halts or self.pair.schedule.all_move(n)

    def _learn(self, n: int, grad: Leaves, f: Leaves, before: Leaves) -> None:
        """Add to the gradient of beta; nothing if beta is a number."""

    def _keep(self, grad: Tensor, n: int) -> None:
        """grad <- (1 - beta) grad, for the samples that move."""
        schedule = self.pair.schedule
        moving, keep = schedule.moving(n), 1.0 - _like(schedule.applied(n), grad)
        if moving is None:
            grad.mul_(keep)
        else:
            torch.where(by_sample(moving, grad), grad * keep, grad, out=grad)

    def _seed(self, grad: Leaves, n: int) -> None:
        """beta grad for the samples that move, 0 for the others."""
        schedule = self.pair.schedule
        beta, moving = schedule.applied(n), schedule.moving(n)
        for g, seed in zip(grad, self.seed, strict=True):
            seed.copy_(where_moving(moving, g * _like(beta, g), 0.0))


class AdjointStateOfBeta(AdjointState):
    """The same for a beta that is a tensor, with its gradient, which the passes do not compute.

    From state' = state + beta (f - state), each half step adds grad' (f - state) to it.
    """

    def __init__(
        self, pair: Pair, grad_z: Sequence[Tensor | None], grad_y: Sequence[Tensor | None]
    ) -> None:
        """As ``AdjointState``; beta's gradient starts empty."""
        super().__init__(pair, grad_z, grad_y)
        self.grad_beta: Tensor | None = None

    def _merges(self, n: int) -> bool:
        return False

    def _learn(self, n: int, grad: Leaves, f: Leaves, before: Leaves) -> None:
        schedule = self.pair.schedule
        beta, moving = schedule.tensor, schedule.moving(n)
        assert beta is not None
        # In reverse, the order in which autograd visits the nodes of the leaves.
        for g, value, state in reversed(list(zip(grad, f, before, strict=True))):
            part = beta_part(beta, g, value, self.pair.decode(state, g.dtype), moving)
            self.grad_beta = part if self.grad_beta is None else self.grad_beta + part


def beta_part(
    beta: Tensor, grad: Tensor, f: Tensor, before: Tensor, moving: Tensor | None
) -> Tensor:
    """The contribution of a half step to beta's gradient: grad (f - state), summed to its shape.

    A sample that has halted adds nothing.
    """
    product = where_moving(moving, grad * (f.to(grad.dtype) - before), 0.0)
    if beta.numel() == 1:
        return product.sum().reshape(beta.shape)
    return product.sum_to_size(beta.shape)


def _begin(
    state: Leaves, arrived: Sequence[Tensor | None], adjoint: Sequence[torch.dtype]
) -> Leaves:
    grads = [torch.empty_like(s, dtype=dtype) for s, dtype in zip(state, adjoint, strict=True)]
    for grad, came in zip(grads, arrived, strict=True):
        if came is None:
            grad.zero_()
        else:
            grad.copy_(came)
    return grads


def _like(beta: float | Tensor, grad: Tensor) -> float | Tensor:
    return beta.detach().to(grad.dtype) if isinstance(beta, Tensor) else beta
