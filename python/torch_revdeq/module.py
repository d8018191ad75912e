"""``RevDEQ``: an equilibrium as a layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .compiling import why_broken
from .copies import check_left_out, deep_copy, pickled_state
from .linear_cell import LinearCell
from .one_op import solve_cell
from .solution import Solution, Stats
from .solve import solve

OPTIONS = tuple(
    name
    for name, parameter in inspect.signature(solve).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in ("y0", "kwargs")
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
    returns z, or (z, aux) with has_aux. Keywords of the call that it does not know go to f:
    ``layer(x, attention_mask=m)``. ``layer.stats`` are the statistics of the last call,
    ``layer.solve(x, ...)`` returns the whole ``Solution``.

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
        for name in ("z0", "y0", "kwargs"):
            if name in options:
                raise TypeError(f"{name}: expected in the call of the layer, got it in RevDEQ()")
        check_options(options)
        self.f = f
        self.implementation = implementation
        self.beta = options.pop("beta", 0.5)
        self.options = options
        self.stats: Stats | None = None

    def forward(self, *args: Any, z0: Any = None, y0: Any = None, **kwargs: Any) -> Any:
        """The equilibrium, or (z, aux) with has_aux.

        z0 and y0 are those of ``solve``, z0 by default zeros like the first input. Other keywords
        are f's.
        """
        solution = self.solve(*args, z0=z0, y0=y0, **kwargs)
        return (solution.z, solution.aux) if self.options.get("has_aux") else solution.z

    def solve(self, *args: Any, z0: Any = None, y0: Any = None, **kwargs: Any) -> Solution:
        """Like ``forward``, but returns the full ``Solution``."""
        for name in kwargs:
            if name in OPTIONS:
                raise TypeError(
                    f"{name}: expected in RevDEQ(f, {name}=...), got it in the call; wrap f if it "
                    "has a keyword of this name"
                )
        if z0 is None:
            if not args:
                raise TypeError("z0: expected a start, or an argument to take its shape from")
            start = self.f.start if isinstance(self.f, LinearCell) else torch.zeros_like
            z0 = pytree.tree_map(start, args[0])
        check_left_out(self.options)
        options = {"y0": y0, "beta": self.beta, **self.options}
        if kwargs:
            options["kwargs"] = kwargs
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

    def __deepcopy__(self, memo: dict[int, Any]) -> RevDEQ:
        """A copy with an f of its own, that shares the process group; TypeError for some f.

        A function that closes over modules is not copied by Python, and refused.
        """
        return deep_copy(self, memo)

    def __copy__(self) -> RevDEQ:
        """A layer with the same f."""
        copied = self.__class__.__new__(self.__class__)
        copied.__setstate__(dict(self.__dict__))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: without the process group, which has to be given again."""
        return pickled_state(super().__getstate__())

    def extra_repr(self) -> str:
        """The options, as they were given."""
        beta = "learned" if isinstance(self.beta, torch.Tensor) else self.beta
        return ", ".join([f"beta={beta}", *(f"{k}={v!r}" for k, v in self.options.items())])
