"""Whether the leaves that f reads require grad as in the forward pass, where f is evaluated again.

Otherwise f would save other tensors, or as many of the same shapes, which would reach the wrong
nodes of autograd's graph. The flags are only read: other threads use these leaves too.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..evaluation.effects.naming import name_of
from ..evaluation.replay import Evaluation


class Frozen:
    """Which leaves require grad in the forward pass."""

    def __init__(self, evaluation: Evaluation, leaves: Sequence[Tensor]) -> None:
        """Note what holds now, for these leaves and those that f holds without a module."""
        self.evaluation = evaluation
        held = [t for t in evaluation.held.tensors if _is_differentiable_leaf(t)]
        noted = {id(leaf): (leaf, leaf.requires_grad) for leaf in (*leaves, *held)}
        self.noted = list(noted.values())

    def changed(self) -> RuntimeError | None:
        """The error for a leaf that was frozen or unfrozen since, if that matters; None: none was.

        It does not matter where f saves the same in the same operations: leaves that were only
        frozen, or only unfrozen, otherwise change the number of saved tensors. If some were frozen
        and others unfrozen, f may save as many in another order, and the error is raised here.
        """
        rows = [(leaf, then) for leaf, then in self.noted if leaf.requires_grad != then]
        # What f holds may have become a computed tensor, as a sum of losses does.
        rows = [(leaf, then) for leaf, then in rows if leaf.is_leaf]
        if not rows:
            return None
        error = frozen_between(name_of(rows[0][0], self.evaluation.modules))
        if len({then for _, then in rows}) > 1:
            raise error
        return error


def frozen_between(name: str | None) -> RuntimeError:
    """The error if requires_grad of a leaf is no longer what it was in the forward pass."""
    return RuntimeError(
        "solve: expected requires_grad of f's parameters as in the forward pass, got a change of "
        f"{name or 'a tensor that f holds'}; freeze and unfreeze after backward(), or choose "
        "adjoint='reversible'"
    )


def _is_differentiable_leaf(tensor: Tensor) -> bool:
    return tensor.is_leaf and (tensor.is_floating_point() or tensor.is_complex())
