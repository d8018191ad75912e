"""The edge of an evaluation of f: a gradient enters through what f returned, or not at all.

The solver evaluates f on tensors of its own: copies of the state and of the arguments that are cut
off from the graph outside. A tensor that leaves f by another way (kept on a module, in a list, by a
hook) still hangs on them. If it joins a loss, its gradient ends there, and what it would have done
to the steps before and to what the arguments were computed from is lost. So a gradient that comes
to these tensors, and that the solver did not ask for, raises.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..runtime.transforms import inside_transform


class CaptureError(RuntimeError):
    """f reads, or leaves behind, a tensor whose gradient the solver could not deliver."""


def side_loss() -> CaptureError:
    """What a gradient means that comes to an evaluation from outside."""
    return CaptureError(
        "f: expected what it computes to reach the loss through what it returns, got a gradient at "
        "a tensor of one evaluation that left f by another way (kept on a module, in a list, by a "
        "hook) and joined the loss; the gradient would be wrong. Return it: f returns (z, aux), "
        "with solve(..., has_aux=True), or give adjoint='backprop'; or keep it detached"
    )


def _refuse(_: Any) -> NoReturn:
    raise side_loss()


# ---- leaves: raise where backward() arrives -----------------------------------------------------

_GUARD: Any = OrderedDict({0: _refuse})
"""One dictionary for all leaves: to set it takes a tenth of the time of ``register_hook``."""


def guard(leaves: Sequence[Tensor]) -> None:
    """From now on, raise where a gradient arrives at one of these leaves.

    After an evaluation, not before: f may differentiate with respect to what it is given.
    """
    for leaf in leaves:
        if leaf.requires_grad and leaf.grad_fn is None:
            leaf._backward_hooks = _GUARD


def unguarded(leaves: Sequence[Tensor]) -> None:
    """Let the solver's own gradient in."""
    for leaf in leaves:
        if leaf.grad_fn is None and leaf._backward_hooks is _GUARD:
            leaf._backward_hooks = None


def is_guarded(leaf: Tensor) -> bool:
    """Whether a leaf belongs to an evaluation that is over."""
    return leaf._backward_hooks is _GUARD


def entered(leaves: Sequence[Tensor]) -> list[Tensor]:
    """Leaves of autograd's graph in the memory of these, for one evaluation of f."""
    if len(leaves) == 1:  # the common case, without a loop
        return [leaves[0].detach().requires_grad_()]
    return [leaf.detach().requires_grad_() for leaf in leaves]


# ---- nodes: raise where any gradient passes -----------------------------------------------------


class Gate:
    """Open or closed. All that autograd's nodes hold of an entrance: it holds some of them."""

    def __init__(self) -> None:
        self.is_open = False


class Entrance:
    """Where the tensors of one solve enter f, downstream of what they are computed from.

    A leaf raises when a gradient arrives at it, and ``torch.autograd.grad`` lets none arrive that
    it was not asked for: of an encoder's parameters, a loss that f left behind would be a constant.
    What enters here raises then, too. While the entrance is open gradients end at it, as at a leaf:
    f may differentiate inside of itself.
    """

    def __init__(self) -> None:
        """Closed, and behind nothing."""
        self.gate = Gate()
        self._anchor: Tensor | None = None

    def lead_from(self, origin: Sequence[Tensor]) -> None:
        """Lie behind these tensors from now on."""
        above = [tensor for tensor in origin if tensor.requires_grad]
        self._anchor = None
        if above:
            with torch.enable_grad():
                self._anchor = _Enter.apply(self.gate, [torch.empty(0)], *above)[0]

    def enter(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The values as f gets them, in the same memory; leaves, where they lie behind nothing."""
        if self._anchor is None:
            return entered(values)
        if inside_transform():
            return list(_Enter.apply(self.gate, values, self._anchor))
        return list(_enter(self.gate, values, self._anchor))

    def behind(self, tensor: Tensor) -> Tensor:
        """A tensor that requires grad, as f gets it: behind itself."""
        return _Enter.apply(self.gate, [tensor], tensor)[0]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """While f runs, or the solver differentiates."""
        before, self.gate.is_open = self.gate.is_open, True
        try:
            yield
        finally:
            self.gate.is_open = before


class _Enter(torch.autograd.Function):
    """From what is outside to what f gets, in autograd's eyes."""

    @staticmethod
    def forward(
        ctx: Any, gate: Gate, values: Sequence[Tensor], *origin: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.gate, ctx.count = gate, len(origin)
        ctx.set_materialize_grads(False)
        return tuple([value.detach() for value in values])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        if not ctx.gate.is_open:
            raise side_loss()
        return (None,) * (2 + ctx.count)


def is_entered(node: Any) -> bool:
    """Whether a node of autograd's graph is an entrance into some evaluation."""
    return type(node) is _ENTER


_ENTER: type = _Enter._backward_cls
_enter: Any = super(torch.autograd.Function, _Enter).apply  # type: ignore[misc]
"""``_Enter.apply`` without torch's preparations for torch.func, which take as long again."""
