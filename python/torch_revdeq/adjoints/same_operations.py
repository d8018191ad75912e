"""Whether f runs the same operations again when its saved tensors are recomputed.

Saved tensors are told apart by their order, so a gradient that takes another path through f would
get others of the same shapes, without a word.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..evaluation.closure import operations_of, other_operations
from ..evaluation.effects.modules import is_sharded
from ..evaluation.replay import Evaluation
from .vjp import is_asked_for_leaves


class Operations:
    """The prints of f's graphs in one solve, by half step."""

    def __init__(self, evaluation: Evaluation) -> None:
        """None so far. A sharded module adds operations of its own, in one pass only."""
        self.compared = not any(map(is_sharded, evaluation.modules))
        self.prints: dict[int, int] = {}

    def note(self, k: int, outputs: Sequence[Tensor], since: int, given: Sequence[Tensor]) -> None:
        """In the forward pass, after half step k; `since` is ``now()`` before it."""
        found = self._print(outputs, since, given)
        if found is not None:
            self.prints[k] = found

    def check(
        self, k: int, outputs: Sequence[Tensor], since: int, cause: RuntimeError | None = None
    ) -> None:
        """After f was evaluated again, on leaves: `cause`, or CaptureError, if it ran others."""
        then = self.prints.get(k)
        if then is not None and self._print(outputs, since, ()) not in (then, None):
            raise cause or other_operations()

    def _print(self, outputs: Sequence[Tensor], since: int, given: Sequence[Tensor]) -> int | None:
        # An operation counter adds operations of its own.
        if not self.compared or is_asked_for_leaves():
            return None
        return operations_of(outputs, since, given)
