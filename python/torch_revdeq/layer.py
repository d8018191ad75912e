"""``RevDEQ``: a deep equilibrium model as a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .cell.fused import solve_cell
from .cell.linear import LinearCell
from .compile.entry import why_broken
from .evaluation.called import check_callable
from .evaluation.effects.copies import (
    check_left_out,
    check_pickled,
    deep_copy,
    pickled_state,
)
from .evaluation.keywords import joined
from .evaluation.start import about_start
from .options.kept import (
    OF_THE_CALL,
    changed,
    check_class,
    check_new,
    check_options,
    is_option,
    keep,
    mistaken,
    option,
)
from .options.names import parted
from .solution import Solution, Stats
from .solver import solve


class RevDEQ(nn.Module):
    """A layer whose output is the equilibrium z = f(z, x) of its cell f.

    ``layer(x, ...)`` solves from z0 = zeros_like(x) (for a ``LinearCell``: ``cell.start(x)``) and
    returns z, or (z, aux) with has_aux. Keywords of the call that are not options are passed to f:
    ``layer(x, attention_mask=m)``. ``layer.stats`` holds the statistics of the last call;
    ``layer.solve(x, ...)`` returns the full ``Solution``.

    Every option is an attribute, ``layer.max_steps = 30``, and a keyword of the call, for that call
    only: ``layer(x, tol=1e-4)``. Set `compile`, which is a method of every module, with
    ``set_solver``; it also changes several options that depend on each other. After a change, a
    compiled model recompiles. A subclass passes its options to ``super().__init__``; as class
    attributes they raise TypeError.

    Args:
        f: called as ``f(z, x, ...)``. If it is a module, its parameters are the layer's.
        options: those of ``solve``: beta, max_steps, tol, state, adjoint, rng, check and so on. If
            beta is a Parameter, it is trained with the others.
        implementation: for a ``LinearCell``: what runs the steps, "solver" or a name in
            ``revdeq_kernels.ops.cell.choice.IMPLEMENTATIONS``. None: one op for all steps where
            that is fastest (on a CPU with AVX2 or AVX-512, for example), otherwise the solver;
            ``stats.route`` says which one ran, and why.
    """

    def __init__(
        self, f: Callable[..., Any], *, implementation: str | None = None, **options: Any
    ) -> None:
        super().__init__()
        check_class(type(self))
        check_callable(f, "RevDEQ(f, **options)")
        if implementation is not None and not isinstance(f, LinearCell):
            raise TypeError(
                f"implementation: expected None for a cell of {type(f).__name__}, got "
                f"{implementation!r}; only a LinearCell has implementations besides the solver"
            )
        for name in OF_THE_CALL:
            if name in options:
                raise TypeError(
                    f"{name}: expected in the layer's call, got it in RevDEQ(); pass it as "
                    f"layer(x, {name}=...)"
                )
        options = check_options(options)
        self.f = f
        self.implementation = implementation
        self.beta = options.pop("beta", 0.5)
        self.options = options
        self.stats: Stats | None = None

    max_steps, tol, check_every = option("max_steps"), option("tol"), option("check_every")
    per_sample, process_group = option("per_sample"), option("process_group")
    residual_mask, state, frac_bits = option("residual_mask"), option("state"), option("frac_bits")
    adjoint, rng, check, accumulate = map(option, ("adjoint", "rng", "check", "accumulate"))
    store_last, memory_budget = option("store_last"), option("memory_budget")
    save_at, backward_steps = option("save_at"), option("backward_steps")
    has_aux, aux, pass_step = option("has_aux"), option("aux"), option("pass_step")
    trace, on_step = option("trace"), option("on_step")

    def __setattr__(self, name: str, value: Any) -> None:
        """As in nn.Module, but options are checked; AttributeError for a misspelled option."""
        if is_option(self, name):
            object.__setattr__(self, name, value)
        elif name == "beta" and "options" in self.__dict__:
            keep(self, changed(self, {name: value}))
        else:
            # If stats were checked, a compiler would guard on it and recompile for each value.
            if name != "stats" and name not in self.__dict__:
                check_new(self, name, value)
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """As in nn.Module; the error for a name that looks like an option names the option."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            said = mistaken(type(self), name)
            if said is None:
                raise
            raise AttributeError(said) from None

    def set_solver(self, **options: Any) -> None:
        """Change options of ``solve``. If one of them is invalid, none is changed.

        Raises:
            TypeError, ValueError: as ``solve``, for the options alone and in combination.
        """
        keep(self, changed(self, options))

    def forward(
        self,
        *args: Any,
        z0: Any = None,
        y0: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Any:
        """The equilibrium, or (z, aux) with has_aux.

        z0, y0 and kwargs are as in ``solve``; z0 defaults to zeros like the first input. Other
        keywords that are options of ``solve`` override the layer's for this call; the rest are
        passed to f. A name that is both raises TypeError: pass it to f in kwargs.
        """
        solution = self.solve(*args, z0=z0, y0=y0, kwargs=kwargs, **more)
        has_aux = more.get("has_aux", self.options.get("has_aux"))
        return (solution.z, solution.aux) if has_aux else solution.z

    def solve(
        self,
        *args: Any,
        z0: Any = None,
        y0: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Solution:
        """Like ``forward``, but returns the full ``Solution``."""
        options = {"y0": y0, "beta": self.beta, **self.options}
        if more:
            given, more = parted(self.f, 1 + len(args), more)
            options.update(given)
        if more or kwargs is not None:
            options["kwargs"] = joined(kwargs, more)
        check_left_out(options)
        chosen = z0 is None
        if chosen:
            z0 = self._start(args)
        compiling = torch.compiler.is_dynamo_compiling()
        if torch.compiler.is_exporting() or (compiling and options.get("adjoint") == "functional"):
            solution = solve(self.f, z0, *args, **options)
        elif compiling and why_broken(self.f, args, options) is None:
            from .compile.trace import solve_in_graph

            solution = solve_in_graph(self, self.f, z0, args, options)
        elif chosen and not compiling:
            solution = self._solve_from_own(z0, args, options)
        else:
            solution = self.solve_from(z0, args, options)
        self.stats = solution.stats
        return solution

    def _start(self, args: tuple[Any, ...]) -> Any:
        """The default z0."""
        if not args:
            raise TypeError(
                "z0: expected an initial state, or an argument to take its shape from, got "
                "neither; pass f's first argument by position, or z0="
            )
        if isinstance(self.f, LinearCell):
            return pytree.tree_map(self.f.start, args[0])
        if isinstance(args[0], Tensor):
            return torch.zeros_like(args[0])
        for leaf in pytree.tree_leaves(args[0]):
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    "z0: expected an initial state where the first input is not made of tensors, "
                    f"got none and an input that contains {type(leaf).__name__}; pass z0="
                )
        return pytree.tree_map(torch.zeros_like, args[0])

    def _solve_from_own(self, z0: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Solution:
        """A call from ``_start``; an error that this z0 may have caused says so."""
        try:
            return self.solve_from(z0, args, options)
        except (RuntimeError, ValueError, TypeError) as error:
            said = None if isinstance(self.f, LinearCell) else about_start(z0, error)
            if said is None:
                raise
            raise said from error

    def solve_from(self, z0: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Solution:
        """A call, by one op or by the solver. `options` are those of ``solve``, and y0."""
        if isinstance(self.f, LinearCell):
            return solve_cell(self.f, z0, args, options, self.implementation)
        return solve(self.f, z0, *args, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> RevDEQ:
        """A copy with its own f and the same process group.

        TypeError for a function that closes over modules: Python does not copy it.
        """
        return deep_copy(self, memo)

    def __copy__(self) -> RevDEQ:
        """A layer with the same f, and its own options."""
        copied = self.__class__.__new__(self.__class__)
        spaces = ("options", "_parameters", "_buffers", "_modules")
        own = {name: dict(self.__dict__[name]) for name in spaces}
        copied.__setstate__({**self.__dict__, **own})
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: without the process group, which must be set again."""
        if type(self).__getstate__ is RevDEQ.__getstate__:  # a subclass may leave f out
            check_pickled({"f": self.f, "beta": self.beta, **self.options})
        return pickled_state(super().__getstate__())

    def extra_repr(self) -> str:
        """The options that were given."""
        beta = "learned" if isinstance(self.beta, torch.Tensor) else self.beta
        return ", ".join([f"beta={beta}", *(f"{k}={v!r}" for k, v in self.options.items())])


def set_solver(model: nn.Module, **options: Any) -> None:
    """Change options of ``solve`` in every ``RevDEQ`` of a model: ``set_solver(model, tol=1e-3)``.

    If an option is invalid for one layer, no layer is changed. The weights stay the same. A
    compiled model recompiles at its next call.

    Args:
        model: any module, with layers anywhere in it.
        options: of ``solve``, as in ``RevDEQ(f, ...)``.

    Raises:
        ValueError: the model has no ``RevDEQ``.
        TypeError, ValueError: as ``solve``, for the options alone and in combination.
    """
    layers = [module for module in model.modules() if isinstance(module, RevDEQ)]
    if not layers:
        raise ValueError(
            f"model: expected a module with RevDEQ layers in it, got {type(model).__name__} without"
            " any; pass the model that contains them"
        )
    found = [changed(layer, options) for layer in layers]
    for layer, values in zip(layers, found, strict=True):
        keep(layer, values)
