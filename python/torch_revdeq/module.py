"""``RevDEQ``: an equilibrium as a layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .compiling import why_broken
from .linear_cell import LinearCell
from .one_op import solve_cell
from .solution import Solution, Stats
from .solve import solve

OPTIONS = tuple(
    name
    for name, parameter in inspect.signature(solve).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name != "y0"
)
"""The options of ``solve`` that a layer keeps."""


def check_options(options: Collection[str]) -> None:
    """TypeError for a name that ``solve`` does not know."""
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"{name}: expected an option of solve, one of {', '.join(OPTIONS)}")


class RevDEQ(nn.Module):
    """A layer whose output is the equilibrium z = f(z, x) of its cell f.

    ``layer(x, ...)`` solves from z0 = zeros_like(x) (for a ``LinearCell``: ``cell.start(x)``) and
    returns z. ``layer.stats`` are the statistics of the last call, ``layer.solve(x, ...)`` returns
    the whole ``Solution``.

    Args:
        f: called as ``f(z, x, ...)``. If it is a module, its parameters are the layer's.
        options: those of ``solve``: beta, max_steps, tol, state, adjoint, rng, check and so on. A
            beta that is a Parameter is trained with the rest.
        implementation: for a ``LinearCell``: what takes its steps, "solver" or a name of
            ``revdeq_kernels.cell_choice.IMPLEMENTATIONS``. None: one op for all steps where a
            kernel was found to be faster by it, and the solver elsewhere; ``stats.route`` says
            which, and why.
    """

    def __init__(
        self, f: Callable[..., Any], *, implementation: str | None = None, **options: Any
    ) -> None:
        super().__init__()
        if implementation is not None and not isinstance(f, LinearCell):
            raise TypeError(
                f"implementation: expected None for a cell of {type(f).__name__}, got "
                f"{implementation!r}; only a LinearCell has others than the solver"
            )
        for name in ("z0", "y0"):
            if name in options:
                raise TypeError(f"{name}: expected in the call of the layer, got it in RevDEQ()")
        check_options(options)
        self.f = f
        self.implementation = implementation
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
            start = self.f.start if isinstance(self.f, LinearCell) else torch.zeros_like
            z0 = pytree.tree_map(start, args[0])
        options = {"y0": y0, "beta": self.beta, **self.options}
        compiling = torch.compiler.is_dynamo_compiling()
        if torch.compiler.is_exporting() or (compiling and options.get("adjoint") == "functional"):
            solution = solve(self.f, z0, *args, **options)
        elif compiling and why_broken(self.f, args, options) is None:
            from .in_graph import solve_in_graph

            solution = solve_in_graph(self, self.f, z0, args, options)
        else:
            solution = self.solve_from(z0, args, options)
        self.stats = solution.stats
        return solution

    def solve_from(self, z0: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Solution:
        """A call, by what takes this cell's steps. `options` are those of ``solve``, and y0."""
        if isinstance(self.f, LinearCell):
            return solve_cell(self.f, z0, args, options, self.implementation)
        return solve(self.f, z0, *args, **options)

    def extra_repr(self) -> str:
        """The options, as they were given."""
        beta = "learned" if isinstance(self.beta, torch.Tensor) else self.beta
        return ", ".join([f"beta={beta}", *(f"{k}={v!r}" for k, v in self.options.items())])
