"""The options of ``solve``, one by one: what each may be, and what is said of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from .float_pair import FLOAT_STATES
from .mapping import flatten
from .modules import is_sharded
from .problem import State

Adjoint: TypeAlias = Literal["auto", "reversible", "backprop", "checkpoint", "hooks", "functional"]


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError for what is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def chosen_adjoint(adjoint: Adjoint, modules: Sequence[nn.Module]) -> Adjoint:
    """The adjoint that "auto" stands for: the one that an f with these modules can have."""
    if adjoint != "auto":
        return adjoint
    return "hooks" if any(map(is_sharded, modules)) else "reversible"


def state_dtype(state: State, leaves: Sequence[Tensor]) -> torch.dtype | None:
    """The dtype of a float state; None for an exact one."""
    double = any(leaf.dtype == torch.float64 for leaf in leaves)
    if state == "auto":
        return torch.float64 if double else None
    if state == "exact":
        if double:
            raise TypeError(
                "state: expected z0 in float32 or less for 'exact', got float64; choose "
                "state=torch.float64"
            )
        return None
    if state not in FLOAT_STATES:
        names = ", ".join(map(str, FLOAT_STATES))
        raise ValueError(f"state: expected 'auto', 'exact' or one of {names}, got {state!r}")
    return state


def fractional_bits(frac_bits: int | str, *, exact: bool) -> int | None:
    """The fractional bits of an exact state; None where they follow from the data."""
    if frac_bits == "auto":
        return None
    if not exact:
        raise ValueError(
            f"frac_bits: expected 'auto' for a float state, got {frac_bits!r}; only state='exact' "
            "is in fixed point"
        )
    if isinstance(frac_bits, bool) or not isinstance(frac_bits, int) or not 0 <= frac_bits <= 30:
        raise ValueError(f"frac_bits: expected 'auto' or an integer of 0 to 30, got {frac_bits!r}")
    return frac_bits


def graphs_to_keep(count: int | str, budget: int | None, adjoint: str) -> int | None:
    """How many graphs to keep; None: as many as the budget holds."""
    if (budget is not None) != (count == "auto"):
        raise ValueError(
            f"memory_budget: expected bytes with store_last='auto' and None otherwise, got "
            f"{budget} with store_last={count!r}"
        )
    if count != 0 and adjoint != "reversible":
        raise ValueError(
            f"store_last: expected 0 with adjoint={adjoint!r}, got {count!r}; choose "
            "adjoint='reversible', the one that evaluates f again and can keep graphs instead"
        )
    if budget is not None:
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
            raise ValueError(f"memory_budget: expected an integer of bytes, got {budget!r}")
        return None
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"store_last: expected 'auto' or an integer of at least 0, got {count!r}")
    return count


def steps_to_save(save_at: Sequence[int], max_steps: int, tol: float | None) -> tuple[int, ...]:
    """The steps after which z is kept, each once."""
    for step in save_at:
        if isinstance(step, bool) or not isinstance(step, int) or not 1 <= step <= max_steps:
            raise ValueError(
                f"save_at: expected integers of 1 to max_steps={max_steps}, got {step!r}; z after "
                "0 steps is z0"
            )
    if len(set(save_at)) < len(save_at):
        raise ValueError(f"save_at: expected each step once, got {list(save_at)}")
    if save_at and tol:
        raise ValueError(
            f"save_at: expected without a tol, got tol={tol}, which may stop before; give tol=None"
        )
    return tuple(save_at)


def steps_back(count: int | None, tol: float | None) -> int | None:
    """How many of the last steps are differentiated; None: all."""
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(
            f"backward_steps: expected None or an integer of at least 1, got {count!r}; for no "
            "gradient at all use torch.no_grad()"
        )
    if tol:
        raise ValueError(
            f"backward_steps: expected without a tol, got tol={tol}: the last steps are known when "
            "they are over; give tol=None, or draw max_steps yourself"
        )
    return count


def second_start(y0: Any, z0: list[Tensor], structure: Any) -> list[Tensor] | None:
    """The leaves of y0, which are like those of z0."""
    if y0 is None:
        return None
    leaves, other = flatten("y0", y0)
    if other != structure:
        raise TypeError(f"y0: expected the structure of z0, {structure}, got {other}")
    for leaf, like in zip(leaves, z0, strict=True):
        if (leaf.shape, leaf.dtype, leaf.device) != (like.shape, like.dtype, like.device):
            raise ValueError(
                f"y0: expected leaves like those of z0, {tuple(like.shape)} {like.dtype} on "
                f"{like.device}, got {tuple(leaf.shape)} {leaf.dtype} on {leaf.device}"
            )
    return leaves
