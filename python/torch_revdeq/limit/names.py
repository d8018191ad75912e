"""The error for an unknown option of ``fixed_point``: other names, and options of ``solve``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ..evaluation.keywords import by_name_only, named, no_option
from ..options.names import meant, slips
from ..options.other_names import NOT_OF_FIXED_POINT, OF_FIXED_POINT
from ..options.table import TABLE

P = ParamSpec("P")
R = TypeVar("R")


def refusing_other_names(function: Callable[P, R]) -> Callable[P, R]:
    """The function; for an unknown keyword, a TypeError that suggests the option."""
    parameters = inspect.signature(function).parameters
    known = frozenset(parameters)
    options = [p.name for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]

    @functools.wraps(function)
    def call(*args: P.args, **given: P.kwargs) -> R:
        for name in given:
            if name not in known:
                kind = f"an option of {function.__name__}"
                said = advice(name, options) or of_f(name, *args)
                raise no_option(name, kind, said, options)
        return function(*args, **given)

    return call


def advice(name: str, options: list[str]) -> str:
    """What the error for an unknown name suggests; "" if nothing is known."""
    if name in NOT_OF_FIXED_POINT:
        return NOT_OF_FIXED_POINT[name]
    near = next((option for option in options if name in slips(option)), None)
    option = OF_FIXED_POINT.get(name) or near or meant(name) or name
    if name in OF_FIXED_POINT or option in options:
        return f"did you mean {option}?"
    return f"{option} is an option of solve" if option in TABLE else ""


def of_f(name: str, *args: Any) -> str:
    """What the error suggests if the name is one of a parameter of f, which `args` begin with."""
    if not args or not callable(args[0]) or name not in named(args[0], 1):
        return ""
    if name in by_name_only(args[0]):
        return f"bind keywords of f beforehand: functools.partial(f, {name}=...)"
    return "pass arguments of f by position, after z0"
