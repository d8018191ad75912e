"""The solver under torch.compile: an operator in the graph where possible, else a graph break.

It is possible if f is a module with plain parameters, which become inputs of the graph, and if a
graph can hold the other arguments. For other callables the compiler does not tell what they close
over. Either way the solve and f run as in eager mode, unless f was compiled by itself.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, ParamSpec, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..evaluation.keywords import for_f, joined, options_of
from ..options.names import advice
from ..solution import Solution
from .breaks import BREAKS, SOLVER

_OF_F = (
    "solve: expected an nn.Module with plain parameters as f in torch.compile(fullgraph=True), got "
    "another callable; make f a module that is given every other tensor as an argument, compile f "
    "alone, or allow graph breaks"
)
_OF_ARGUMENTS = (
    "solve: expected tensors, numbers, strings and plain functions in the arguments and options in "
    "torch.compile(fullgraph=True), got another object (an Adjoint, a StoppingRule), whose changes "
    "a graph does not see; pass what f needs of it, compile f alone, or allow graph breaks"
)
_OF_WRITTEN = (
    "solve: expected an f that the graph has not written to in torch.compile(fullgraph=True), got "
    "one with a new attribute, parameter or buffer, which f would not see; pass the value as an "
    "argument, solve(f, z0, value), write it outside the compiled code, or allow graph breaks"
)
_OF_AUX = (
    "solve: expected an aux whose shapes are known before in torch.compile(fullgraph=True), got "
    "aux='stack' with a tol or a function as max_steps, or adjoint='functional'; choose another "
    "aux or adjoint, compile f alone, or allow graph breaks"
)
_OF_ON_STEP = (
    "solve: expected no on_step in torch.compile(fullgraph=True), got one, whose effects a "
    "graph does not see; pass trace=True, or allow graph breaks"
)

P = ParamSpec("P")


def for_compilers(solve: Callable[P, Solution]) -> Callable[P, Solution]:
    """``solve``, ready for torch.compile, but without importing the compiler in eager mode."""
    SOLVER.append(solve)
    eager = not_compiled(solve, _OF_F)
    reasons = (_OF_ARGUMENTS, _OF_WRITTEN, _OF_AUX, _OF_ON_STEP)
    broken = {reason: not_compiled(solve, reason) for reason in reasons}

    known = options_of(solve)
    names = frozenset(known)

    @functools.wraps(solve)
    def call(f: Any, z0: Any, *args: Any, **options: Any) -> Solution:
        if not names.issuperset(options):
            more = {name: options.pop(name) for name in [*options] if name not in names}
            for_f(f, tuple(more), known, advice)
            options["kwargs"] = joined(options.get("kwargs"), more)
        if torch.compiler.is_exporting() or without_data(z0):
            from .unrolled import solve_unrolled

            return solve_unrolled(f, z0, args, options)
        if torch.compiler.is_dynamo_compiling():
            reason = why_broken(f, args, options)
            if reason is None:
                from .trace import functional_in_graph, solve_in_graph

                if options.get("adjoint") == "functional":
                    return functional_in_graph(f, z0, args, options)
                return solve_in_graph(f, f, z0, args, options)
            if reason != _OF_F:
                return broken[reason](f, z0, *args, **options)  # type: ignore[call-arg]
        return eager(f, z0, *args, **options)  # type: ignore[call-arg]

    return cast("Callable[P, Solution]", call)


def without_data(z0: Any) -> bool:
    """Whether an initial state has shapes but no data."""
    if type(z0) is Tensor or type(z0) is nn.Parameter:
        return z0.is_meta
    fake: Any = sys.modules.get("torch._subclasses.fake_tensor")
    kinds = () if fake is None else (fake.FakeTensor,)
    leaves = [leaf for leaf in pytree.tree_leaves(z0) if isinstance(leaf, Tensor)]
    return any(leaf.is_meta or isinstance(leaf, kinds) for leaf in leaves)


def not_compiled(solve: Callable[P, Solution], reason: str = _OF_F) -> Callable[P, Solution]:
    """A function that causes a graph break, with a reason that says what to do about it."""
    disabled: list[Callable[P, Solution]] = []

    def make() -> None:
        if not disabled:
            disabled.append(torch.compiler.disable(solve, reason=reason))  # type: ignore[arg-type]

    number = len(BREAKS)
    BREAKS.append(make)

    @functools.wraps(solve)
    def call(*args: P.args, **options: P.kwargs) -> Solution:
        if "torch._dynamo" not in sys.modules:  # then nothing is being compiled
            return solve(*args, **options)
        if torch.compiler.is_dynamo_compiling():
            from .trace import make_break

            make_break(number)
        else:
            make()
        return disabled[0](*args, **options)

    return call


def why_broken(f: Any, args: Sequence[Any], options: dict[str, Any]) -> str | None:
    """Why a solve cannot be part of a graph; None if it can. Traced by the compiler."""
    if not isinstance(f, nn.Module) or not all(type(p) is nn.Parameter for p in f.parameters()):
        return _OF_F
    if options.get("has_aux", False) and not _has_known_aux(options):
        return _OF_AUX
    if options.get("on_step") is not None:
        return _OF_ON_STEP
    traced = isinstance(options.get("max_steps", 8), int)
    for name, value in options.items():
        if name == "process_group" or (name == "beta" and traced and type(value) is FunctionType):
            continue
        if not all(map(_is_plain, pytree.tree_leaves(value))):
            return _OF_ARGUMENTS
    if not all(map(_is_plain, pytree.tree_leaves(list(args)))):
        return _OF_ARGUMENTS
    if options.get("adjoint") != "functional":  # that one is traced, with what it reads
        from .trace import written_before

        if written_before(f):
            return _OF_WRITTEN
    return None


def _has_known_aux(options: dict[str, Any]) -> bool:
    """Whether the shapes of aux are independent of data."""
    if options.get("adjoint") == "functional":
        return False
    tol = options.get("tol")
    endless = tol is None or (isinstance(tol, (int, float)) and tol == 0)
    fixed = endless and isinstance(options.get("max_steps", 8), int)
    return options.get("aux", "sum") != "stack" or fixed


_PLAIN = (Tensor, bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def _is_plain(value: Any) -> bool:
    """Whether guards notice a change of it: by value, or for a function by identity."""
    if value is None or isinstance(value, _PLAIN):
        return True
    if not isinstance(value, FunctionType):
        return False
    if not value.__code__.co_freevars:
        return True
    try:  # a function made in the graph has no closure for the compiler
        return value.__closure__ is not None
    except Exception:
        return False
