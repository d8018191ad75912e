"""``LinearCell``, the classic equilibrium cell. ``fused.py`` solves it in one op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revdeq_kernels.ops.cell.reference import ACTIVATIONS

ACTS: dict[str, Callable[[Tensor], Tensor]] = {name: act for name, (act, _) in ACTIVATIONS.items()}

GAIN = 0.7
"""The initial norm of W: with an activation slope of at most 1.13 (gelu's), f contracts distances
to at most 0.8."""


class LinearCell(nn.Module):
    """The cell f(z, x) = act(W z + U x + b), with x [..., in_features] and z [..., features].

    Use it in ``RevDEQ(LinearCell(...))`` or ``solve``, or call ``cell(z, x)``. Under RevDEQ one op
    can run all steps (``revdeq_kernels.linear_cell_forward``): it computes U x + b once, and with
    16-bit parameters it still computes f in float32, from z rounded to their dtype.

    W is initialized to an orthogonal matrix times 0.7, so that f contracts; training may change
    that (``torch_revdeq.spectral_radius`` measures it; ``torch.nn.utils.parametrizations`` can
    constrain W). U and b are initialized as in ``nn.Linear``.

    Args:
        in_features: features of x.
        features: features of z.
        act: "tanh", "relu", "gelu" (by erf), "silu" or "gelu_tanh".
        device: of the parameters W [features, features], U [features, in_features] and b
            [features].
        dtype: of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        act: str = "tanh",
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if act not in ACTS:
            raise ValueError(
                f"act: expected one of {', '.join(map(repr, ACTS))}, got {act!r}; for another, "
                "write your own cell as a module"
            )
        self.in_features, self.features, self.act = in_features, features, act
        options = {"device": device, "dtype": dtype}
        self.W = nn.Parameter(torch.empty(features, features, **options))
        self.U = nn.Parameter(torch.empty(features, in_features, **options))
        self.b = nn.Parameter(torch.empty(features, **options))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize the parameters again."""
        # Orthogonal matrices are computed in float32 or float64 only.
        wide = torch.float64 if self.W.dtype == torch.float64 else torch.float32
        self.W.copy_(nn.init.orthogonal_(torch.empty_like(self.W, dtype=wide), gain=GAIN))
        bound = self.in_features**-0.5 if self.in_features else 0.0
        nn.init.uniform_(self.U, -bound, bound)
        nn.init.uniform_(self.b, -bound, bound)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The next state."""
        return ACTS[self.act](F.linear(z, self.W) + self.of_input(x))

    def of_input(self, x: Tensor) -> Tensor:
        """U x + b."""
        return F.linear(x, self.U, self.b)

    def start(self, x: Tensor) -> Tensor:
        """Zeros of shape [..., features], the initial state that RevDEQ uses."""
        return x.new_zeros(*x.shape[:-1], self.features)

    def extra_repr(self) -> str:
        """The sizes, and act."""
        return f"in_features={self.in_features}, features={self.features}, act={self.act!r}"
