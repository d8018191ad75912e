"""Launches of the adjoint and the passes of a backward step; see ``half_step.py``."""

from __future__ import annotations

from functools import partial
from typing import Any

from revdeq_kernels.exact_numbers import contraction, effective_beta

from ..device.exact_step import ExactlyStepped
from ..device.half_step import Carried, Stepped
from ..kernels import half_step as kernels
from ..kernels import passes
from .leaves import (
    BLOCK,
    Group,
    Leaves,
    as_scalars,
    grouped,
    laid_out_like,
    lanes_of,
    launch,
    numels_of,
    programs_of,
    step_numbers,
)


def adjoint_(grad: Leaves, vjp: Leaves, scale: float, beta: float, seed: Leaves) -> None:
    """See ``reference.adjoint_``."""
    for group in grouped(grad=grad, vjp=vjp, seed=seed):
        grads = group["grad"]
        numels = numels_of(grads)
        scalars = as_scalars(grads[0].dtype, scale, beta, 1.0)
        args = (_carried(group), numels, *scalars)
        launch(kernels.adjoint_kernel, programs_of(numels), grads[0], *args, BLOCK=BLOCK)


# ---- the passes ------------------------------------------------------------------------------


def _pass(names: tuple[str, ...], *args: Any, cast: Leaves | None = None) -> None:
    """Launch a pass; `names` are its arguments' names, the inverse's before the adjoint's."""
    lists = dict(zip(names, args, strict=True))
    beta, next_beta = lists.pop("beta"), lists.pop("next_beta", None)
    on_grid = (lists.pop("frac_bits", 0), lists.pop("tie", 0))
    exact = "digits" in lists
    keep = contraction(beta).one_minus_beta if exact else 1.0 - beta
    effective = effective_beta if exact else float
    if next_beta is not None:  # grad <- keep grad + vjp
        numbers = (keep, effective(next_beta), 1.0)
    elif "other" in lists:  # grad <- (keep grad + other) + vjp
        numbers = (keep, 0.0, 1.0)
    else:  # grad <- grad + vjp, then keep grad after the seed
        numbers = (1.0, effective(beta), keep)
    for group in grouped(**lists, cast=cast):
        states, grads = group["state"], group["grad"]
        fs, casts = laid_out_like(group["f"], states), group.get("cast")
        numels = numels_of(states)
        programs = steps = programs_of(numels)
        carried = (_carried(group), *as_scalars(grads[0].dtype, *numbers))
        constants = {"BLOCK": BLOCK}
        if exact:
            kernel = passes.exact_pass_kernel
            form, packed, step = step_numbers(beta, *on_grid)
            num_bytes, lanes = lanes_of(states, beta)
            steps = programs_of(num_bytes, lanes)
            stepped = ExactlyStepped(states, group["digits"], fs, casts)
            back = (stepped, numels, num_bytes, steps, *step)
            constants |= {"FORM": form, "DIGITS_PER_BYTE": packed, "LANES": lanes}
        else:
            kernel = passes.pass_kernel
            scalars = as_scalars(states[0].dtype, keep, beta)
            back = (Stepped(states, fs, casts), numels, steps, *scalars)
        launch(kernel, steps + programs, states[0], *back, *carried, **constants)


def _carried(group: Group) -> Carried:
    """The tensors of the adjoint in a pass."""
    grads = group["grad"]
    vjps = laid_out_like(group["vjp"], grads)
    return Carried(grads, group.get("other"), vjps, group.get("seed"))


_FLOAT = ("state", "f", "beta")
_EXACT = ("state", "digits", "f", "beta", "frac_bits", "tie")
_Y = ("grad", "vjp", "seed")
_Z = ("grad", "vjp", "next_beta", "seed")
_Z0 = ("grad", "other", "vjp")

invert_z_adjoint_y_ = partial(_pass, (*_FLOAT, *_Y))
invert_y_adjoint_z_ = partial(_pass, (*_FLOAT, *_Z))
invert_y_adjoint_z0_ = partial(_pass, (*_FLOAT, *_Z0))
invert_z_adjoint_y_exact_ = partial(_pass, (*_EXACT, *_Y))
invert_y_adjoint_z_exact_ = partial(_pass, (*_EXACT, *_Z))
invert_y_adjoint_z0_exact_ = partial(_pass, (*_EXACT, *_Z0))
