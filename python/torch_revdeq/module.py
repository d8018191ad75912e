"""``RevDEQ``: an equilibrium as a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .compiling import can_be_operator
from .solution import Solution, Stats
from .solve import solve


class RevDEQ(nn.Module):
    """A layer whose output is the equilibrium z = f(z, x) of its cell f.

    ``layer(x, ...)`` solves from z0 = zeros_like(x) and returns z. ``layer.stats`` are the
    statistics of the last call, ``layer.solve(x, ...)`` returns the whole ``Solution``.

    Args:
        f: called as ``f(z, x, ...)``. If it is a module, its parameters are the layer's.
        options: those of ``solve``: beta, max_steps, tol, state, adjoint, rng, check and so on. A
            beta that is a Parameter is trained with the rest.
    """

    def __init__(self, f: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        for name in ("z0", "y0"):
            if name in options:
                raise TypeError(f"{name}: expected in the call of the layer, got it in RevDEQ()")
        self.f = f
        self.beta = options.pop("beta", 0.5)
        self.options = options
        self.stats: Stats | None = None

    def forward(self, *args: Any, z0: Any = None, y0: Any = None) -> Any:
        """The equilibrium; z0 and y0 as in ``solve``, z0 by default zeros like the first input."""
        return self.solve(*args, z0=z0, y0=y0).z

    def solve(self, *args: Any, z0: Any = None, y0: Any = None) -> Solution:
        """As ``forward``, with all that there is to know."""
        if z0 is None:
            if not args:
                raise TypeError("z0: expected a start, or an argument to take its shape from")
            z0 = pytree.tree_map(torch.zeros_like, args[0])
        options = {"y0": y0, "beta": self.beta, **self.options}
        functional = options.get("adjoint") == "functional"
        if torch.compiler.is_dynamo_compiling() and can_be_operator(self.f) and not functional:
            from .in_graph import solve_in_graph

            solution = solve_in_graph(self, self.f, z0, args, options)
        else:
            solution = solve(self.f, z0, *args, **options)
        self.stats = solution.stats
        return solution

    def extra_repr(self) -> str:
        """The options, as they were given."""
        beta = "learned" if isinstance(self.beta, torch.Tensor) else self.beta
        return ", ".join([f"beta={beta}", *(f"{k}={v!r}" for k, v in self.options.items())])
