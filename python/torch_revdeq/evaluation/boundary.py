"""The boundary of an evaluation of f: gradients may enter only through what f returned.

The solver evaluates f on its own tensors: copies of the state and of the arguments, detached from
the outer graph. A tensor that leaves f in another way (kept on a module, in a list, by a hook)
depends on these copies. If it reaches a loss, its gradient would end at them, and its effect on
earlier steps and on the tensors that the arguments were computed from would be lost. So a gradient
that arrives at these copies, and that the solver did not request, raises.
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
    """f reads or leaves behind a tensor whose gradient would be wrong."""


def side_loss() -> CaptureError:
    """The error for a gradient that enters an evaluation from outside."""
    return CaptureError(
        "f: expected its tensors to reach the loss only through what it returns, got a gradient at "
        "a tensor that left f in another way (kept on a module, in a list, by a hook), so the "
        "gradient would be wrong. Return it: f returns (z, aux), with solve(..., has_aux=True); "
        "or choose adjoint='backprop'; or keep it detached"
    )


def _refuse(_: Any) -> NoReturn:
    raise side_loss()


# ---- leaves: raise where backward() arrives -----------------------------------------------------

_GUARD: Any = OrderedDict({0: _refuse})
"""One dictionary for all leaves: setting it takes a tenth of the time of ``register_hook``."""


def guard(leaves: Sequence[Tensor]) -> None:
    """From now on, raise if a gradient arrives at one of these leaves.

    Call it after an evaluation, not before: f may differentiate with respect to its inputs.
    """
    for leaf in leaves:
        if leaf.requires_grad and leaf.grad_fn is None:
            leaf._backward_hooks = _GUARD


def unguarded(leaves: Sequence[Tensor]) -> None:
    """Allow gradients again, for the solver's own."""
    for leaf in leaves:
        if leaf.grad_fn is None and leaf._backward_hooks is _GUARD:
            leaf._backward_hooks = None


def is_guarded(leaf: Tensor) -> bool:
    """Whether a leaf belongs to a finished evaluation."""
    return leaf._backward_hooks is _GUARD


def entered(leaves: Sequence[Tensor]) -> list[Tensor]:
    """New autograd leaves that share the memory of these, for one evaluation of f."""
    if len(leaves) == 1:  # the common case, without a loop
        return [leaves[0].detach().requires_grad_()]
    return [leaf.detach().requires_grad_() for leaf in leaves]


# ---- nodes: raise where any gradient passes -----------------------------------------------------


class Gate:
    """Open or closed. The only part of an entrance that autograd nodes hold, to avoid a cycle."""

    def __init__(self) -> None:
        self.is_open = False


class Entrance:
    """Where the tensors of one solve enter f, downstream of the tensors they depend on.

    A leaf raises only when a gradient arrives at it, and ``torch.autograd.grad`` does not visit
    leaves that were not requested: a loss that f left behind would be constant with respect to an
    encoder's parameters. Tensors that enter here raise in that case too. While the entrance is
    open, gradients end at it as at a leaf, because f may differentiate inside itself.
    """

    def __init__(self) -> None:
        """Closed, and downstream of nothing."""
        self.gate = Gate()
        self._anchor: Tensor | None = None

    def lead_from(self, origin: Sequence[Tensor]) -> None:
        """Be downstream of these tensors from now on."""
        above = [tensor for tensor in origin if tensor.requires_grad]
        self._anchor = None
        if above:
            with torch.enable_grad():
                self._anchor = _Enter.apply(self.gate, [torch.empty(0)], *above)[0]

    def enter(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The values as f gets them, in the same memory; leaves if they depend on nothing."""
        if self._anchor is None:
            return entered(values)
        if inside_transform():
            return list(_Enter.apply(self.gate, values, self._anchor))
        return list(_enter(self.gate, values, self._anchor))

    def behind(self, tensor: Tensor) -> Tensor:
        """A tensor that requires grad, as f gets it: downstream of itself."""
        return _Enter.apply(self.gate, [tensor], tensor)[0]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open while f runs, or while the solver differentiates."""
        before, self.gate.is_open = self.gate.is_open, True
        try:
            yield
        finally:
            self.gate.is_open = before


class _Enter(torch.autograd.Function):
    """The autograd node from the outer tensors to what f gets."""

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
    """Whether an autograd node is an entrance of some evaluation."""
    return type(node) is _ENTER


_ENTER: type = _Enter._backward_cls
_enter: Any = super(torch.autograd.Function, _Enter).apply  # type: ignore[misc]
"""``_Enter.apply`` without torch's preparations for torch.func, which would double its time."""
