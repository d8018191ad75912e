"""Whether f reads a tensor that was computed outside of it and that nobody passed to it.

``closure`` finds that in the graph of the first evaluation, and refuses it. Here it is found before
the solve begins, by an evaluation that leaves nothing behind, so that another adjoint can take it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, is_lazy

from .boundary import is_entered, is_guarded
from .closure import ends_of, now
from .effects.written import Written
from .replay import Evaluation


def computed_outside(
    evaluation: Evaluation, leaves: Sequence[Tensor], tensors: Sequence[Tensor]
) -> str | None:
    """The operation that made such a tensor; None where f reads none in its first evaluation.

    Asked before ``Evaluation.forward``, of the state and the tensors that f is given. f is not
    evaluated where it holds no tensor that may be one, nor where that would write statistics which
    nobody could put back, for they are made then: those of lazy normalization, in its first solve.
    """
    held = [*_held_by(evaluation)]
    if any(isinstance(t, UninitializedBuffer) for t in held) or not any(map(_is_computed, held)):
        return None
    made = made_outside(evaluation)
    with torch.enable_grad():
        # Copies: f is seen to write what it is given when the solve begins.
        state, given = ([_copy(t) for t in part] for part in (leaves, tensors))
        since = now()
        out = _tried(evaluation, state, given)
        node = ends_of(out, since, outside=made)[1]
    return None if node is None or is_entered(node) else node.name()


def _tried(
    evaluation: Evaluation, leaves: Sequence[Tensor], tensors: Sequence[Tensor]
) -> list[Tensor]:
    """The first half step before ``forward``: nothing is written, and nothing drawn.

    But for weights of lazy modules, which are made in it: their numbers are drawn once.
    RuntimeError where f wrote what is not copied for this: a frozen parameter, mostly.
    """
    evaluation.settle()
    before = Written(evaluation.held)
    weights = (module.__dict__.get("_parameters") or {} for module in evaluation.modules)
    lazy = any(is_lazy(weight) for space in weights for weight in space.values())
    with before.large_kept():
        out = evaluation.again(0, leaves, tensors, drawn=lazy)
    changed = before.changed()
    if changed:
        raise RuntimeError(
            "f: expected to write no frozen parameter, and no large tensor of a class of its own, "
            f"beside a computed one that it holds, got a change of {changed[0].name}: "
            "adjoint='auto' evaluates f once to see which it reads; make what it writes a buffer, "
            "or choose adjoint='reversible', where f reads none"
        )
    return out


def made_outside(evaluation: Evaluation) -> frozenset[Any]:
    """The nodes that made the tensors that f holds, of whatever thread they are."""
    held = (tensor for tensor in _held_by(evaluation) if tensor is not None)
    return frozenset(tensor.grad_fn for tensor in held if tensor.grad_fn is not None)


def _held_by(evaluation: Evaluation) -> Iterator[Tensor | None]:
    """The tensors that f could read; parameters that were computed are arguments by now."""
    held = evaluation.held
    buffers = (module.__dict__.get("_buffers") or {} for module in held.modules)
    return chain(held.tensors, *(space.values() for space in buffers))


def _is_computed(tensor: Tensor | None) -> bool:
    """Whether it was computed from others, and not in an evaluation: those are f's own remains."""
    if tensor is None or tensor.grad_fn is None:
        return False
    ends, _, nodes = ends_of([tensor], 0)
    return not any(map(is_entered, nodes)) and not any(is_guarded(end.variable) for end in ends)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
