"""Let autograd save tensors unchanged, hidden from outer saved-tensor hooks."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def saved_apart() -> saved_tensors_hooks:
    """A context in which autograd saves as without hooks: outer hooks do not see it.

    An operation may save its own output. A hook that returned that tensor would form a reference
    cycle with the node through C++, which Python cannot free; a detached tensor does not.
    """
    return saved_tensors_hooks(Tensor.detach, as_it_is)


def as_it_is(tensor: Tensor) -> Tensor:
    """The saved tensor, unchanged."""
    return tensor
