"""The options of one call, read with the table, and checked in combination.

``call.py`` checks what depends on the call: the dtype of z0, the steps that a function returns, the
shapes of y0 and masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..evaluation.adjoint import ADJOINTS, Adjoint
from ..iteration.beta import BetaSchedule
from ..iteration.stopping import StoppingRule
from .table import DEFAULTS, LIMITED, TABLE, takes
from .values import is_sequence, shown


def read_options(values: dict[str, Any]) -> dict[str, Any]:
    """The options as the solver uses them, in place: each checked alone, then in combination."""
    for name, value in values.items():
        option = TABLE[name]
        if value is not option.default:
            values[name] = option.read(value)
    if values["tol"] == 0 and not values["per_sample"] and values["process_group"] is None:
        values["tol"] = None  # no residual is below 0
    _check_together(values)
    return values


def with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """The given options, read, and the defaults of the others. Unknown names are left unchanged."""
    known = read_options({name: options.get(name, value) for name, value in DEFAULTS.items()})
    return {**options, **known}


def check_given(options: dict[str, Any]) -> None:
    """Raise, before any call, for options that no call accepts, including invalid betas."""
    given = with_defaults(options)
    beta, steps = given["beta"], given["max_steps"]
    if isinstance(steps, int):
        steps_to_save(given["save_at"], steps)
    if not isinstance(beta, Tensor) and not callable(beta):
        if callable(steps):
            steps = max(1, len(beta)) if is_sequence(beta) else 1
        BetaSchedule(beta, steps, exact=given["state"] == "exact")


def _check_together(given: dict[str, Any]) -> None:
    """ValueError for options that exclude each other."""
    tol = given["tol"]
    if given["per_sample"] and tol is None:
        raise ValueError(
            "per_sample: expected a tol in addition, got tol=None; pass the residual below which a "
            "sample halts, such as tol=1e-3, or leave per_sample out"
        )
    if given["process_group"] is not None and tol is None:
        raise ValueError(
            "process_group: expected a tol in addition, got tol=None; pass one, or leave "
            "process_group out: without a tol all ranks run max_steps anyway"
        )
    if (given["memory_budget"] is not None) != (given["store_last"] == "auto"):
        raise ValueError(
            f"memory_budget: expected bytes with store_last='auto' and None otherwise, got "
            f"{given['memory_budget']} with store_last={given['store_last']!r}"
        )
    if isinstance(tol, StoppingRule):
        _check_with_rule(given)
    if isinstance(tol, StoppingRule) or tol:
        _check_with_tol(given, tol)
    if given["frac_bits"] != "auto" and isinstance(given["state"], torch.dtype):
        raise bits_of_a_float(given["frac_bits"])
    if given["adjoint"] not in ("auto", "reversible"):
        check_adjoint(adjoint_of(given["adjoint"]), given)


def _check_with_rule(given: dict[str, Any]) -> None:
    for name, value in (("per_sample", False), ("residual_mask", None)):
        if given[name] is not value:
            raise ValueError(
                f"{name}: expected {value} with a StoppingRule as tol, which measures by itself, "
                f"got {shown(given[name])}; leave {name} out, or pass a number as tol"
            )


def _check_with_tol(given: dict[str, Any], tol: float | StoppingRule) -> None:
    if given["save_at"]:
        raise ValueError(
            f"save_at: expected no tol in addition, got tol={tol}, which may stop earlier; pass "
            "tol=None"
        )
    if given["backward_steps"] is not None:
        raise ValueError(
            f"backward_steps: expected no tol in addition, got tol={tol}, with which the last "
            "steps are known only afterwards; pass tol=None, or draw max_steps yourself"
        )


def adjoint_of(value: str | Adjoint) -> Adjoint:
    """The adjoint for a value of the option other than "auto"."""
    return value if isinstance(value, Adjoint) else ADJOINTS[value]


def check_adjoint(adjoint: Adjoint, given: dict[str, Any]) -> None:
    """ValueError for an option that this adjoint does not support."""
    for option in LIMITED:
        value = given[option.name]
        if not takes(adjoint, option) and value != option.default:
            takers = [name for name, row in ADJOINTS.items() if takes(row, option)]
            one = f"adjoint={takers[0]!r}" if len(takers) == 1 else "another one"
            reason = ", the only one that keeps graphs" if option.name == "store_last" else ""
            raise ValueError(
                f"{option.name}: expected {option.default} with adjoint={adjoint.name!r}, got "
                f"{shown(value)}; choose {one}{reason}, or leave {option.name} out"
            )


def bits_of_a_float(frac_bits: int) -> ValueError:
    """The error for frac_bits with a float state."""
    return ValueError(
        f"frac_bits: expected 'auto' for a float state, got {frac_bits!r}; only state='exact' "
        "is in fixed point"
    )


def steps_to_save(save_at: Sequence[int], max_steps: int) -> tuple[int, ...]:
    """The steps after which z is saved, checked."""
    for step in save_at:
        if step > max_steps:
            raise ValueError(
                f"save_at: expected integers of 1 to max_steps={max_steps}, got {step!r}; z after "
                "0 steps is z0"
            )
    if len(set(save_at)) < len(save_at):
        raise ValueError(
            f"save_at: expected each step once, got {list(save_at)}; remove the duplicates"
        )
    return tuple(save_at)
