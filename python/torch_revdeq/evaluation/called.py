"""Errors for calls that f does not fit: arguments that are swapped, not passed, or too many."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

_BY_NAME = inspect.Parameter.KEYWORD_ONLY
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_callable(f: Any, call: str) -> None:
    """TypeError unless f is callable and no class; `call` shows the order of the arguments."""
    if isinstance(f, type) and issubclass(f, nn.Module):
        raise TypeError(
            f"f: expected a callable, got the class {f.__name__}; make an instance: "
            f"{f.__name__}(...)"
        )
    if not callable(f):
        tensor = isinstance(f, Tensor)
        got = f"a tensor of shape {tuple(f.shape)}" if tensor else type(f).__name__
        raise TypeError(
            f"f: expected a callable as the first argument, got {got}; the order is {call}"
        )


def check_keywords(kwargs: Any) -> None:
    """TypeError unless these are None or a mapping."""
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(
            f"kwargs: expected a dict of f's keyword arguments, got {type(kwargs).__name__}; pass "
            "positional arguments after z0"
        )


def unfit(
    f: Callable[..., Any], args: Sequence[Any], keywords: Mapping[str, Any]
) -> TypeError | None:
    """The error if f cannot be called as f(z, *args, **keywords): too many or too few arguments."""
    try:
        signature = inspect.signature(f.forward if isinstance(f, nn.Module) else f)
    except (TypeError, ValueError):  # it has none
        return None
    parameters = list(signature.parameters.values())
    return _too_many(parameters, args) or _lacking(signature, parameters, args, keywords)


def _too_many(parameters: Sequence[inspect.Parameter], args: Sequence[Any]) -> TypeError | None:
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    names = [p.name for p in parameters if p.kind not in (*_VARIABLE, _BY_NAME)]
    if not names or len(args) < len(names):
        return None
    by_name = [p.name for p in parameters if p.kind is _BY_NAME]
    given = "".join(f", {name}" for name in names[1:])  # the first is the state
    how = f"the state is z0, in solve(f, z0{given}) or layer({given[2:]}{', ' * bool(given)}z0=z0)"
    if by_name:
        how = f"pass kwargs={{{', '.join(f'{name!r}: ...' for name in by_name)}}}"
    return TypeError(
        f"f: expected {_counted(len(names) - 1)} after the state, got {len(args)}; {how}"
    )


def _counted(count: int) -> str:
    return "no argument" if count == 0 else f"at most {count} argument{'s' * (count > 1)}"


def _lacking(
    signature: inspect.Signature,
    parameters: Sequence[inspect.Parameter],
    args: Sequence[Any],
    keywords: Mapping[str, Any],
) -> TypeError | None:
    """The error if a parameter without a default is left out."""
    try:
        bound = signature.bind_partial(None, *args, **keywords).arguments
    except TypeError:  # a keyword that it does not have
        return None
    needed = [p for p in parameters if p.default is p.empty]
    missing = [p for p in needed if p.kind not in _VARIABLE and p.name not in bound]
    if not missing:
        return None
    if any(p.kind is _BY_NAME for p in missing):
        how = f"kwargs={{{', '.join(f'{p.name!r}: ...' for p in missing)}}}"
    else:
        names = [p.name for p in needed if p.kind not in (*_VARIABLE, _BY_NAME)]
        given = ", ".join(names[1:])  # the first is the state
        pronoun = "it" if len(missing) == 1 else "them"
        how = f"{pronoun} after z0, as in solve(f, z0, {given}) or layer({given})"
    return TypeError(
        f"f: expected an argument for each of its parameters, got none for "
        f"{', '.join(p.name for p in missing)}; f is called with the state first: pass {how}"
    )
