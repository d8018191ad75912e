"""torch.func transforms and forward mode: detects them where a solve does not support them.

The reversible adjoints work in place, on memory that a transform does not see. Where they are not
supported they must raise: a tangent that an op drops would give a zero derivative. The plain
PyTorch code of ``adjoint="backprop"`` and ``"functional"`` with a float state supports them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad


def inside_transform() -> bool:
    """Whether a torch.func transform (grad, vmap, jvp, ...) is active."""
    return torch._C._functorch.maybe_current_level() is not None  # type: ignore[attr-defined]


def is_from_outside(value: Any) -> bool:
    """Whether a tensor belongs to a transform outside the innermost active one."""
    if not isinstance(value, Tensor):
        return False
    functorch = torch._C._functorch  # type: ignore[attr-defined]
    level = functorch.maybe_get_level(value)
    return level is not None and level > (functorch.maybe_current_level() or 0)


def has_tangent(tensors: Sequence[Tensor]) -> bool:
    """Whether one of the tensors carries a forward-mode derivative."""
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


# ---- batched gradients -----------------------------------------------------------------------

_functorch = torch._C._functorch  # type: ignore[attr-defined]
_enter_batch = torch._C._vmapmode_increment_nesting
_leave_batch = torch._C._vmapmode_decrement_nesting


def is_batched(grads: Sequence[Tensor | None]) -> bool:
    """Whether the gradients are batched, as from jacobian(vectorize=True)."""
    for grad in grads:
        if grad is not None and (
            _functorch.is_legacy_batchedtensor(grad) or _functorch.is_batchedtensor(grad)
        ):
            return True
    return False


def refuse_batched(grads: Sequence[Tensor | None]) -> None:
    """RuntimeError for batched gradients, in a backward pass that works in place."""
    if is_batched(grads):
        raise RuntimeError(
            "solve: expected one gradient at a time with adjoint='reversible', got batched "
            "gradients (vectorize=True, is_grads_batched=True); choose adjoint='functional', "
            "'hooks' or 'backprop', or vectorize=False"
        )


def outside_batches() -> AbstractContextManager[None]:
    """Evaluate f as in the forward pass, inside a backward pass with batched gradients.

    There random numbers and ``requires_grad_`` would raise. f sees no batched tensor: all its
    inputs come from the forward pass.
    """
    _enter_batch()
    levels = _leave_batch()
    if levels == 0 and not inside_transform():
        return nullcontext()
    return _outside(levels)


@contextmanager
def _outside(levels: int) -> Iterator[None]:
    with temporarily_clear_interpreter_stack():
        for _ in range(levels):
            _leave_batch()
        try:
            yield
        finally:
            for _ in range(levels):
                _enter_batch()
