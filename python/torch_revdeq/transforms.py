"""torch.func's transforms and forward mode: what a solve cannot be part of, said by name.

The reversible adjoints work in place, on memory that a transform does not see. Where they cannot
run they must not run: a tangent that an op drops would be a derivative of zero. The plain PyTorch
of ``adjoint="backprop"`` and ``"functional"`` with a float state takes them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def check_transforms(adjoint: str, exact: bool, tensors: Sequence[Tensor]) -> bool:
    """Whether the solve is part of a transform that it can be part of; RuntimeError if it cannot.

    `tensors` are those that the solve is known to read.
    """
    functional = inside_transform()
    if adjoint == "functional" and not functional and forward_ad._current_level >= 0:
        raise RuntimeError(
            "solve: expected forward mode to come from torch.func.jvp with adjoint='functional', "
            "got torch.autograd.forward_ad; choose torch.func.jvp, or adjoint='backprop'"
        )
    if not functional and not has_tangent(tensors):
        return False
    if adjoint not in ("backprop", "functional") or exact:
        what = "a transform of torch.func" if functional else "forward-mode derivatives"
        raise RuntimeError(
            f"solve: expected to be differentiated by backward() or torch.autograd.grad with "
            f"adjoint={adjoint!r}{' and an exact state' if exact else ''}, got {what}; choose "
            "adjoint='functional' or 'backprop', and state=torch.float32 or torch.float64"
        )
    return True


def inside_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) is running."""
    return torch._C._functorch.maybe_current_level() is not None  # type: ignore[attr-defined]


def is_from_outside(value: Any) -> bool:
    """Whether a tensor belongs to a transform outside of the one whose function runs now."""
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
