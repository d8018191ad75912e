"""Whether f reads a tensor that was computed outside f and not passed to it.

``closure`` finds that in the graph of the first evaluation and raises. Here it is found before the
solve begins, by an evaluation without side effects, so that another adjoint can be chosen.
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
    """The operation that made such a tensor; None if f reads none in its first evaluation.

    Call it before ``Evaluation.forward``. f is not evaluated if it holds no such tensor, nor if
    that would write statistics that cannot be restored, because they are created then: those of
    lazy normalization in its first solve.
    """
    held = [*_held_by(evaluation)]
    if any(isinstance(t, UninitializedBuffer) for t in held) or not any(map(_is_computed, held)):
        return None
    made = made_outside(evaluation)
    with torch.enable_grad():
        # Copies: writes of f to its arguments are detected when the solve begins.
        state, given = ([_copy(t) for t in part] for part in (leaves, tensors))
        since = now()
        out = _tried(evaluation, state, given)
        node = ends_of(out, since, outside=made)[1]
    return None if node is None or is_entered(node) else node.name()


def _tried(
    evaluation: Evaluation, leaves: Sequence[Tensor], tensors: Sequence[Tensor]
) -> list[Tensor]:
    """The first half step before ``forward``, without writes or random draws.

    Except that weights of lazy modules are created in it, with random numbers that are drawn once.
    RuntimeError if f wrote a tensor that is not copied for this, usually a frozen parameter.
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
            "f: expected to write no frozen parameter, and no large tensor outside its buffers, "
            f"while it holds a computed tensor, got a change of {changed[0].name}: adjoint='auto' "
            "evaluates f once to see whether it reads the computed one; make what f writes a "
            "buffer, or choose adjoint='reversible' if it reads no computed tensor"
        )
    return out


def made_outside(evaluation: Evaluation) -> frozenset[Any]:
    """The nodes that made the tensors that f holds, from any thread."""
    held = (tensor for tensor in _held_by(evaluation) if tensor is not None)
    return frozenset(tensor.grad_fn for tensor in held if tensor.grad_fn is not None)


def _held_by(evaluation: Evaluation) -> Iterator[Tensor | None]:
    """The tensors that f could read; computed parameters are arguments by now."""
    held = evaluation.held
    buffers = (module.__dict__.get("_buffers") or {} for module in held.modules)
    return chain(held.tensors, *(space.values() for space in buffers))


def _is_computed(tensor: Tensor | None) -> bool:
    """Whether it was computed from others, but not in an evaluation of f."""
    if tensor is None or tensor.grad_fn is None:
        return False
    ends, _, nodes, _ = ends_of([tensor], 0)
    return not any(map(is_entered, nodes)) and not any(is_guarded(end.variable) for end in ends)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
