"""The solver under torch.compile: an operator of the graph where it can be one, or a graph break.

It can where f is a module of plain parameters: these are inputs of the graph. Of other callables
the compiler does not say what they close over. Either way the solve runs as it always does, and so
does f, unless f was compiled by itself.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeGuard, cast

import torch
from torch import nn

from .keywords import for_f, joined, options_of
from .opaque import run_by
from .solution import Solution

_REASON = (
    "solve: expected an nn.Module with plain parameters as f in torch.compile(fullgraph=True), got "
    "another callable; make f a module that is given every other tensor as an argument, compile f "
    "alone, or allow graph breaks"
)

P = ParamSpec("P")


def for_compilers(solve: Callable[P, Solution]) -> Callable[P, Solution]:
    """``solve``, ready to be met by a compiler, which eager users are spared the import of."""
    run_by(solve)
    broken = not_compiled(solve)

    known = options_of(solve)
    names = frozenset(known)

    @functools.wraps(solve)
    def call(f: Any, z0: Any, *args: Any, **options: Any) -> Solution:
        if not names.issuperset(options):
            more = {name: options.pop(name) for name in [*options] if name not in names}
            for_f(f, tuple(more), known)
            options["kwargs"] = joined(options.get("kwargs"), more)
        if torch.compiler.is_dynamo_compiling() and can_be_operator(f):
            from .in_graph import functional_in_graph, solve_in_graph

            if options.get("adjoint") == "functional":
                return functional_in_graph(f, z0, args, options)
            return solve_in_graph(f, f, z0, args, options)
        return broken(f, z0, *args, **options)  # type: ignore[call-arg]

    return cast("Callable[P, Solution]", call)


def not_compiled(solve: Callable[P, Solution]) -> Callable[P, Solution]:
    """A break in the graph, with what to do about it."""
    disabled: list[Callable[P, Solution]] = []

    @functools.wraps(solve)
    def call(*args: P.args, **options: P.kwargs) -> Solution:
        if "torch._dynamo" not in sys.modules:  # then nothing is being compiled
            return solve(*args, **options)
        if not disabled:
            disabled.append(torch.compiler.disable(solve, reason=_REASON))  # type: ignore[arg-type]
        return disabled[0](*args, **options)

    return call


def can_be_operator(f: Any) -> TypeGuard[nn.Module]:
    """Whether a solve of this f can be an operator of a graph; asked by the compiler."""
    return isinstance(f, nn.Module) and all(type(p) is nn.Parameter for p in f.parameters())
