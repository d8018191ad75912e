"""What the equilibrium cell's two ops take and return, in the order of their schemas.

The ops take their arguments one by one, as schemas do; everyone behind them takes these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_type_hints

from torch import Tensor

FORWARD, BACKWARD = "linear_cell_forward", "linear_cell_backward"
"""The names of the ops."""


class Inputs(NamedTuple):
    """The tensors of a solve: u and w of f(s) = act(w s + u), and the start of y and z."""

    u: Tensor
    w: Tensor
    z0: Tensor


class Numbers(NamedTuple):
    """What else a solve is made of."""

    beta: float
    steps: int
    act: str
    state: str
    frac_bits: int
    tol: float

    @property
    def exact(self) -> bool:
        """Whether the state is in fixed point; otherwise it is float32."""
        return self.state == "exact"

    @property
    def halting(self) -> bool:
        """Whether rows halt when they have converged; otherwise all take all steps."""
        return self.tol > 0


class Ends(NamedTuple):
    """Where the way back begins: the gradients that arrive, and what the forward pass left."""

    grad_y: Tensor
    grad_z: Tensor
    y: Tensor
    z: Tensor
    digits: Tensor
    taken: Tensor


class Solved(NamedTuple):
    """What ``linear_cell_forward`` returns."""

    y: Tensor
    z: Tensor
    fixed: Tensor
    digits: Tensor
    flag: Tensor
    taken: Tensor
    residual: Tensor

    def ends(self, grad_y: Tensor, grad_z: Tensor, numbers: Numbers) -> Ends:
        """Where its way back begins."""
        y, z = self.fixed.unbind() if numbers.exact else (self.y, self.z)
        return Ends(grad_y, grad_z, y, z, self.digits, self.taken)


class Gradients(NamedTuple):
    """What ``linear_cell_backward`` returns."""

    grad_u: Tensor
    grad_w: Tensor
    grad_z0: Tensor
    distance: Tensor
    lost: Tensor


def _listed(*lists: type) -> str:
    """The fields of the lists, as a schema names them."""
    fields = (pair for fields in lists for pair in get_type_hints(fields).items())
    return ", ".join(f"{kind.__name__} {name}" for name, kind in fields)


SCHEMAS = {
    FORWARD: f"({_listed(Inputs, Numbers)}) -> ({_listed(Solved)})",
    BACKWARD: f"({_listed(Ends, Inputs, Numbers)}) -> ({_listed(Gradients)})",
}


def of_forward(args: Sequence[Any]) -> tuple[Inputs, Numbers]:
    """The arguments of ``linear_cell_forward`` as lists."""
    n = len(Inputs._fields)
    return Inputs(*args[:n]), Numbers(*args[n:])


def of_backward(args: Sequence[Any]) -> tuple[Ends, Inputs, Numbers]:
    """The arguments of ``linear_cell_backward`` as lists."""
    n = len(Ends._fields)
    return Ends(*args[:n]), *of_forward(args[n:])
