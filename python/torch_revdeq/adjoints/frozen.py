"""Which of the leaves that f reads require grad, restored while f is evaluated again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from ..evaluation.replay import Evaluation


class Frozen:
    """Which leaves require grad, to evaluate f once more as if none was frozen or unfrozen since.

    Otherwise f would save other tensors, or as many of the same shapes, which would reach the wrong
    nodes of autograd's graph.
    """

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        """Note what holds now."""
        self.noted = list({id(leaf): (leaf, leaf.requires_grad) for leaf in leaves}.values())

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Inside, every leaf requires grad as noted."""
        changed = [(leaf, then) for leaf, then in self.noted if leaf.requires_grad != then]
        try:
            for leaf, then in changed:
                leaf.requires_grad_(then)
            yield
        finally:
            for leaf, then in changed:
                leaf.requires_grad_(not then)


def held_leaves(evaluation: Evaluation) -> list[Tensor]:
    """The leaves that f holds without a module, in a closure for example, in its forward pass."""
    return [t for t in evaluation.held.tensors if t.is_leaf and t.is_floating_point()]
