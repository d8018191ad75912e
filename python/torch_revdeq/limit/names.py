"""Option names of ``fixed_point`` in other libraries, and options that belong to ``solve``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ..options.names import meant
from ..options.table import TABLE

P = ParamSpec("P")
R = TypeVar("R")

ELSEWHERE = {
    "f_solver": "solver",
    **dict.fromkeys(("b_solver", "backward_solver"), "adjoint_solver"),
    **dict.fromkeys(("b_tol", "b_eps", "backward_tol"), "adjoint_tol"),
    **dict.fromkeys(("b_max_iter", "b_max_steps", "b_threshold"), "adjoint_max_steps"),
    **dict.fromkeys(("ift", "hook_ift"), "adjoint='implicit'"),
    "grad": "adjoint='phantom', phantom_steps",
    "tau": "phantom_beta",
    **dict.fromkeys(("beta", "damping", "relaxation", "f_tau"), "solver=Relaxed(beta)"),
}
"""The names in torchdeq and other code for options of ``fixed_point``."""


def refusing_other_names(function: Callable[P, R]) -> Callable[P, R]:
    """The function; for an unknown keyword, a TypeError that suggests the option."""
    parameters = inspect.signature(function).parameters
    known = frozenset(parameters)
    options = [p.name for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]

    @functools.wraps(function)
    def call(*args: P.args, **given: P.kwargs) -> R:
        for name in given:
            if name not in known:
                raise TypeError(
                    f"{name}: expected an option of {function.__name__}, one of "
                    f"{', '.join(options)}{advice(name, options)}"
                )
        return function(*args, **given)

    return call


def advice(name: str, options: list[str]) -> str:
    """The end of the error for an unknown name: the option that was probably meant."""
    option = ELSEWHERE.get(name) or meant(name) or name
    if name in ELSEWHERE or option in options:
        return f"; did you mean {option}?"
    return f"; {option} is an option of solve" if option in TABLE else ""
