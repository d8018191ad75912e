"""Keyword arguments: which belong to the solver, and which to f."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from .called import check_keywords


def options_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's options: its keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def no_option(
    name: str, expected: str, advice: str, options: Collection[str], more: str = ""
) -> TypeError:
    """The error for an unknown option: first what was probably meant, then what there is."""
    known = ", ".join(options)
    if not advice:
        return TypeError(f"{name}: expected {expected}, one of {known}{more}")
    end = "" if advice.endswith("?") else "."
    return TypeError(f"{name}: expected {expected}; {advice}{end} The options are {known}{more}")


def for_f(
    f: Callable[..., Any],
    names: Collection[str],
    options: Collection[str],
    advice: Callable[[str], str],
) -> None:
    """TypeError for keywords of ``solve`` that are neither options nor named parameters of f.

    An f with ``**kwargs`` does not count: a misspelled option would go there unnoticed. `advice`
    gives what the error for a name suggests.
    """
    known = named(f)
    for name in names:
        if name not in known:
            more = "; f also gets its named parameters, and other keywords in kwargs={...}"
            raise no_option(name, "an option of solve", advice(name), options, more)


def named(f: Callable[..., Any], given: int = 0) -> tuple[str, ...]:
    """The parameters of f that may be passed by name, if `given` are passed by position."""
    try:
        parameters = inspect.signature(f.forward if isinstance(f, nn.Module) else f).parameters
    except (TypeError, ValueError):  # a builtin has none
        return ()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    rows = [p for i, p in enumerate(parameters.values()) if i >= given or p.kind is kinds[1]]
    return tuple([p.name for p in rows if p.kind in kinds])


def by_name_only(f: Callable[..., Any]) -> tuple[str, ...]:
    """The parameters of f that cannot be passed by position."""
    return options_of(f.forward if isinstance(f, nn.Module) else f)


def takes_any(f: Callable[..., Any]) -> bool:
    """Whether f takes any keyword, or does not say which."""
    try:
        parameters = inspect.signature(f.forward if isinstance(f, nn.Module) else f).parameters
    except (TypeError, ValueError):
        return True
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def joined(kwargs: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of f from two sources; TypeError for a name in both."""
    check_keywords(kwargs)
    for name in more:
        if kwargs and name in kwargs:
            raise TypeError(f"{name}: expected once, got it by name and in kwargs; leave one out")
    return {**(kwargs or {}), **more}
