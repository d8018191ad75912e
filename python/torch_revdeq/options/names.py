"""Which keywords of a call are options, and which option another name probably means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..evaluation.keywords import named
from .table import TABLE

_STEPS = (
    *("max_iter", "max_iters", "max_iterations", "n_iter", "n_iters", "num_iter", "num_iters"),
    *("num_iterations", "n_steps", "num_steps", "steps", "f_max_iter", "f_max_steps"),
    *("n_loops", "num_loops", "max_depth", "num_recurrences", "iterations", "loops", "iters"),
)
_TOL = ("f_tol", "tolerance", "atol", "rtol", "abs_tol", "rel_tol", "f_eps", "residual_tol", "eps")

ELSEWHERE = {
    **dict.fromkeys(_STEPS, "max_steps"),
    **dict.fromkeys(_TOL, "tol"),
    **dict.fromkeys(("damping", "relaxation", "f_tau", "tau"), "beta"),
    **dict.fromkeys(("backprop_depth", "bptt_steps", "grad_steps"), "backward_steps"),
    **dict.fromkeys(("fractional_bits", "num_bits"), "frac_bits"),
    **dict.fromkeys(("state_dtype", "solver_dtype"), "state"),
    **dict.fromkeys(("backward_method", "gradient_method", "differentiation"), "adjoint"),
    **dict.fromkeys(("indexing", "n_states"), "save_at"),
}
"""Names of ``solve``'s options in other code: torchdeq, scipy, DEQs and looped transformers."""

_LIMIT = "solve has one solver, whose steps are differentiated; torch_revdeq.fixed_point takes "
_STOP = "tol= takes a StoppingRule, which measures another residual"

NO_OPTION = {
    "f_solver": f"{_LIMIT}solver=",
    "b_solver": f"{_LIMIT}adjoint_solver=",
    **dict.fromkeys(("b_tol", "b_eps"), f"{_LIMIT}adjoint_tol="),
    **dict.fromkeys(("b_max_iter", "b_max_steps", "b_threshold"), f"{_LIMIT}adjoint_max_steps="),
    **dict.fromkeys(("ift", "hook_ift"), f"{_LIMIT}adjoint='implicit'"),
    **dict.fromkeys(("phantom_steps", "phantom_beta"), f"{_LIMIT}it with adjoint='phantom'"),
    **dict.fromkeys(("adjoint_solver", "adjoint_tol", "adjoint_max_steps"), f"{_LIMIT}it"),
    **dict.fromkeys(("f_stop_mode", "b_stop_mode", "stop_mode"), _STOP),
    "eval_factor": "solve takes the same max_steps in training and evaluation; change it by "
    "set_solver(model, max_steps=...)",
}
"""Options of other libraries that ``solve`` does not have, with what to use instead."""


def _slips(name: str) -> set[str]:
    """Misspellings: the name with a letter left out, with two swapped, or in the plural."""
    parts = [(name[:i], name[i:]) for i in range(len(name))]
    missing = {a + b[1:] for a, b in parts}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in parts if len(b) > 1}
    return {slip for slip in missing | swapped | {f"{name}s"} if len(slip) > 4}


# A table, because a compiler traces the lookup; short words are left out, too many are similar.
_MEANT = {slip: name for name in TABLE for slip in _slips(name)}
_MEANT |= ELSEWHERE


def meant(name: str) -> str | None:
    """The option that an unknown name probably means, or None."""
    if name in TABLE:
        return None
    small = name.lower()
    return small if small in TABLE else _MEANT.get(small)


def advice(name: str) -> str:
    """The end of the error for an unknown option: what was probably meant."""
    option, place = meant(name), NO_OPTION.get(name)
    return f"; did you mean {option}?" if option else f"; {place}" if place else ""


def unknown(name: str) -> TypeError:
    """The error for an unknown option."""
    known = ", ".join(TABLE)
    return TypeError(f"{name}: expected an option of solve, one of {known}{advice(name)}")


def parted(
    f: Callable[..., Any], given: int, keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the keywords of a layer's call into options and keywords of f.

    `given` is the number of positional arguments of f, including the state. TypeError for an option
    that f has a parameter of the same name for, and for a name that looks like an option and is not
    a parameter of f.
    """
    options: dict[str, Any] = {}
    for_f: dict[str, Any] = {}
    for name, value in keywords.items():
        if name not in TABLE:
            option, place = meant(name), NO_OPTION.get(name)
            if (option or place) and name not in named(f, given):
                remedy = f"pass {option}=..." if option else place
                raise TypeError(
                    f"{name}: expected an option of solve or a parameter of f, got a name that is "
                    f"neither; {remedy}, or if f takes arbitrary keywords pass "
                    f"kwargs={{'{name}': ...}}"
                )
            for_f[name] = value
        elif name in named(f, given):
            raise TypeError(
                f"{name}: expected an option of solve or a parameter of f, got a name that is "
                f"both; pass it to f as kwargs={{'{name}': ...}}, and set the option by "
                f"layer.set_solver({name}=...)"
            )
        else:
            options[name] = value
    return options, for_f
