"""The edge of an evaluation of f: a gradient enters its graph through what f returned, or not at all.

The solver evaluates f on leaves of its own: copies of the state and of the arguments that are cut
off from the graph outside. A tensor that leaves f by another way (kept on a module, in a list, by a
hook) still hangs on them. If it joins a loss, its gradient ends there, and what it would have done
to the steps before and to what the arguments were computed from is lost. So these leaves raise when
a gradient arrives at them that the solver did not ask for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor


class CaptureError(RuntimeError):
    """f reads, or leaves behind, a tensor whose gradient the solver could not deliver."""


def _refuse(_: Tensor) -> NoReturn:
    raise CaptureError(
        "f: expected what it computes to reach the loss through what it returns, got a gradient at "
        "a tensor of one evaluation that left f by another way (kept on a module, in a list, by a "
        "hook) and joined the loss; the gradient would be wrong. Return it: f returns (z, aux), "
        "with solve(..., has_aux=True), or give adjoint='backprop'; or keep it detached"
    )


_GUARD: Any = OrderedDict({0: _refuse})
"""One dictionary for all leaves: to set it takes a tenth of the time of ``register_hook``."""


def guard(leaves: Sequence[Tensor]) -> None:
    """From now on, raise where a gradient arrives at one of these leaves.

    After an evaluation, not before: f may differentiate with respect to what it is given.
    """
    for leaf in leaves:
        if leaf.requires_grad:
            leaf._backward_hooks = _GUARD


def unguarded(leaves: Sequence[Tensor]) -> None:
    """Let the solver's own gradient in."""
    for leaf in leaves:
        if leaf._backward_hooks is _GUARD:
            leaf._backward_hooks = None


def is_guarded(leaf: Tensor) -> bool:
    """Whether a leaf belongs to an evaluation that is over."""
    return leaf._backward_hooks is _GUARD
