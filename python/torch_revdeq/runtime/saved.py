"""What autograd saves, handed on as it is."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def saved_apart() -> saved_tensors_hooks:
    """A context in which autograd saves as without hooks: those of an outer context do not see it.

    An operation saves its own output as itself. A hook that returned it would tie it to the node
    that holds it, in a circle through C++ that Python cannot free; a detached one does not.
    """
    return saved_tensors_hooks(Tensor.detach, as_it_is)


def as_it_is(tensor: Tensor) -> Tensor:
    """What was saved."""
    return tensor
