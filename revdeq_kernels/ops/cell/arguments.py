"""The arguments and results of the equilibrium cell's two ops, in the order of their schemas.

The ops take single arguments, as a schema requires; the code behind them uses these tuples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_type_hints

from torch import Tensor

FORWARD, BACKWARD = "linear_cell_forward", "linear_cell_backward"
"""The names of the ops."""


class Inputs(NamedTuple):
    """The tensors of a solve: u and w of f(s) = act(w s + u), and the initial state of y and z."""

    u: Tensor
    w: Tensor
    z0: Tensor


class Numbers(NamedTuple):
    """The remaining arguments of a solve."""

    beta: float
    steps: int
    act: str
    state: str
    frac_bits: int
    tol: float

    @property
    def exact(self) -> bool:
        """Whether the state is fixed-point; otherwise it is float32."""
        return self.state == "exact"

    @property
    def halting(self) -> bool:
        """Whether rows halt once they have converged; otherwise every row takes every step."""
        return self.tol > 0


class Ends(NamedTuple):
    """The input of the backward pass: incoming gradients, and the results of the forward pass."""

    grad_y: Tensor
    grad_z: Tensor
    y: Tensor
    z: Tensor
    digits: Tensor
    taken: Tensor


class Solved(NamedTuple):
    """The results of ``linear_cell_forward``."""

    y: Tensor
    z: Tensor
    fixed: Tensor
    digits: Tensor
    flag: Tensor
    taken: Tensor
    residual: Tensor

    def ends(self, grad_y: Tensor, grad_z: Tensor, numbers: Numbers) -> Ends:
        """The input of the backward pass, for these incoming gradients."""
        y, z = self.fixed.unbind() if numbers.exact else (self.y, self.z)
        return Ends(grad_y, grad_z, y, z, self.digits, self.taken)


class Gradients(NamedTuple):
    """The results of ``linear_cell_backward``."""

    grad_u: Tensor
    grad_w: Tensor
    grad_z0: Tensor
    distance: Tensor
    lost: Tensor


def _listed(*lists: type) -> str:
    """The fields of the tuples, in the syntax of a schema."""
    fields = (pair for fields in lists for pair in get_type_hints(fields).items())
    return ", ".join(f"{kind.__name__} {name}" for name, kind in fields)


SCHEMAS = {
    FORWARD: f"({_listed(Inputs, Numbers)}) -> ({_listed(Solved)})",
    BACKWARD: f"({_listed(Ends, Inputs, Numbers)}) -> ({_listed(Gradients)})",
}


def of_forward(args: Sequence[Any]) -> tuple[Inputs, Numbers]:
    """The arguments of ``linear_cell_forward`` as tuples."""
    n = len(Inputs._fields)
    return Inputs(*args[:n]), Numbers(*args[n:])


def of_backward(args: Sequence[Any]) -> tuple[Ends, Inputs, Numbers]:
    """The arguments of ``linear_cell_backward`` as tuples."""
    n = len(Ends._fields)
    return Ends(*args[:n]), *of_forward(args[n:])
