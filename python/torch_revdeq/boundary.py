"""The edge of an evaluation of f: a gradient enters through what f returned, or not at all.

The solver evaluates f on leaves of its own: copies of the state and of the arguments that are cut
off from the graph outside. A tensor that leaves f by another way (kept on a module, in a list, by a
hook) still hangs on them. If it joins a loss, its gradient ends there, and what it would have done
to the steps before and to what the arguments were computed from is lost. So these leaves raise when
a gradient arrives at them that the solver did not ask for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import Parameter

_DelayedError: Any = torch._C._functions.DelayedError  # type: ignore[attr-defined]
"""A node of autograd's that raises when it is run."""


class CaptureError(RuntimeError):
    """f reads, or leaves behind, a tensor whose gradient the solver could not deliver."""


MESSAGE = (
    "f: expected what it computes to reach the loss through what it returns, got a gradient at a "
    "tensor of one evaluation that left f by another way (kept on a module, in a list, by a hook) "
    "and joined the loss; the gradient would be wrong. Return it: f returns (z, aux), with "
    "solve(..., has_aux=True), or give adjoint='backprop'; or keep it detached"
)


def _refuse(_: Any) -> NoReturn:
    raise CaptureError(MESSAGE)


_GUARD: Any = OrderedDict({0: _refuse})
"""One dictionary for all leaves: to set it takes a tenth of the time of ``register_hook``."""


def guard(leaves: Sequence[Tensor]) -> None:
    """From now on, raise where a gradient arrives at one of these leaves.

    After an evaluation, not before: f may differentiate with respect to what it is given.
    """
    for leaf in leaves:
        if leaf.requires_grad and leaf.grad_fn is None:
            leaf._backward_hooks = _GUARD


def arm(consumers: Iterable[Any]) -> list[Any]:
    """The same for nodes that take such leaves in; handles by which it can be undone.

    ``torch.autograd.grad`` computes no gradient that nobody asked for, of these leaves least of
    all. It still runs the nodes, on its way to a parameter.
    """
    return [node.register_prehook(_refuse) for node in consumers]


def unguarded(leaves: Sequence[Tensor]) -> None:
    """Let the solver's own gradient in."""
    for leaf in leaves:
        if leaf._backward_hooks is _GUARD:
            leaf._backward_hooks = None


def is_guarded(leaf: Tensor) -> bool:
    """Whether a leaf belongs to an evaluation that is over."""
    return leaf._backward_hooks is _GUARD


def can_enter(tensor: Tensor) -> bool:
    """Whether ``entered`` takes a tensor: autograd's node for it knows no subclasses."""
    return type(tensor) in (Tensor, Parameter) and tensor.layout == torch.strided


def entered(values: Sequence[Tensor], origin: Sequence[Tensor]) -> list[Tensor]:
    """The values as f gets them from `origin`, in autograd's eyes: a gradient between them raises.

    Where a leaf would only raise when a gradient arrives at it, these raise also where no more is
    asked for than the gradient of something that `origin` was computed from. They share the memory
    of the values. Of an `origin` none of which requires grad they are leaves.
    """
    above = [tensor for tensor in origin if tensor.requires_grad]
    if not above:
        return [value.detach().requires_grad_() for value in values]
    count = len(values) + len(above)
    made = _DelayedError(MESSAGE.encode(), count)(*(v.detach() for v in values), *above)
    return list(made[: len(values)])
