"""Errors for calls that f does not fit: arguments that are swapped, not passed, or too many."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_pre_hooks as _before_modules

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
    error: TypeError, f: Callable[..., Any], args: Sequence[Any], keywords: Mapping[str, Any]
) -> TypeError | None:
    """The error in our words if f cannot be called as f(z, *args, **keywords); None otherwise.

    `error` is Python's own. If it comes from inside f, it says more.
    """
    if not _is_of_the_call(error, f):
        return None
    try:
        signature = inspect.signature(f.forward if isinstance(f, nn.Module) else f)
    except (TypeError, ValueError):  # it has none
        return None
    parameters = list(signature.parameters.values())
    known = {p.name for p in parameters}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    if not takes_any and not known.issuperset(keywords):
        return None
    return _too_many(parameters, args, keywords) or _lacking(signature, parameters, args, keywords)


def _is_of_the_call(error: TypeError, f: Callable[..., Any]) -> bool:
    """Whether an error was raised by the call of f, not inside it or by what a hook passed on."""
    if isinstance(f, nn.Module) and (f._forward_pre_hooks or _before_modules):
        return False
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if innermost is None:
        return False
    file = innermost.tb_frame.f_code.co_filename
    return file == nn.modules.module.__file__ or Path(file).parent == Path(__file__).parent


def _too_many(
    parameters: Sequence[inspect.Parameter], args: Sequence[Any], keywords: Mapping[str, Any]
) -> TypeError | None:
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    places = [p for p in parameters if p.kind not in (*_VARIABLE, _BY_NAME)]
    names = [p.name for p in places if p.name not in keywords]
    if not names or len(args) < len(names):
        return None
    needed = [p for p in parameters if p.kind is _BY_NAME and p.default is p.empty]
    by_name = [p.name for p in needed if p.name not in keywords]
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
        places = [p.name for p in needed if p.kind not in (*_VARIABLE, _BY_NAME)]
        # The first is the state; `step` may be passed already, by pass_step.
        given = ", ".join(name for name in places[1:] if name not in keywords)
        pronoun = "it" if len(missing) == 1 else "them"
        how = f"{pronoun} after z0, as in solve(f, z0, {given}) or layer({given})"
    return TypeError(
        f"f: expected an argument for each of its parameters, got none for "
        f"{', '.join(p.name for p in missing)}; f is called with the state first: pass {how}"
    )
