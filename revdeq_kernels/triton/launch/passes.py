"""Launches of the adjoint and of the passes of a backward step; see ``half_step.py``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from revdeq_kernels.exact_numbers import contraction, effective_beta

from ..device.half_step import Carried, ExactlyStepped, Stepped
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

Beta = Callable[[float], float]
"""A beta as the adjoint applies it: the effective one of an exact state."""


def adjoint_(grad: Leaves, vjp: Leaves, scale: float, beta: float, seed: Leaves) -> None:
    """See ``reference.adjoint_``."""
    for group in grouped(grad=grad, vjp=vjp, seed=seed):
        grads = group["grad"]
        numels = numels_of(grads)
        scalars = as_scalars(grads[0].dtype, scale, beta, 1.0)
        args = (_carried(group), numels, *scalars)
        launch(kernels.adjoint_kernel, programs_of(numels), grads[0], *args, BLOCK=BLOCK)


# ---- the passes ------------------------------------------------------------------------------
# The arguments of a pass are those of its inverse, then those of its adjoint, as ``reference.py``
# has them; `numbers` are the scale, the beta of the seed, and what the gradient has after it.


class _FloatStep(NamedTuple):
    state: Leaves
    f: Leaves
    beta: float


class _ExactStep(NamedTuple):
    state: Leaves
    digits: Leaves
    f: Leaves
    beta: float
    frac_bits: int
    tie: int


class _AdjointY(NamedTuple):
    grad: Leaves
    vjp: Leaves
    seed: Leaves

    def numbers(self, keep: float, beta: float, effective: Beta) -> tuple[float, float, float]:
        return 1.0, effective(beta), keep


class _AdjointZ(NamedTuple):
    grad: Leaves
    vjp: Leaves
    next_beta: float
    seed: Leaves

    def numbers(self, keep: float, beta: float, effective: Beta) -> tuple[float, float, float]:
        return keep, effective(self.next_beta), 1.0


class _AdjointZ0(NamedTuple):
    grad: Leaves
    other: Leaves
    vjp: Leaves

    def numbers(self, keep: float, beta: float, effective: Beta) -> tuple[float, float, float]:
        return keep, 0.0, 1.0


def _pass(
    inverse: type[_FloatStep | _ExactStep],
    adjoint: type[_AdjointY | _AdjointZ | _AdjointZ0],
    *args: Any,
    cast: Leaves | None = None,
) -> None:
    """A pass of that inverse and that adjoint."""
    places = len(inverse._fields)
    step, carry = inverse(*args[:places]), adjoint(*args[places:])
    beta = step.beta
    if isinstance(step, _ExactStep):
        numbers = carry.numbers(contraction(beta).one_minus_beta, beta, effective_beta)
    else:
        numbers = carry.numbers(1.0 - beta, beta, float)
    lists = step._asdict() | carry._asdict() | {"cast": cast}
    for group in grouped(**{name: lists[name] for name in _TENSORS if name in lists}):
        states, fs = group["state"], laid_out_like(group["f"], group["state"])
        numels, casts = numels_of(states), group.get("cast")
        constants: dict[str, int] = {}
        if isinstance(step, _ExactStep):
            kernel = passes.exact_pass_kernel
            form, packed, exact = step_numbers(beta, step.frac_bits, step.tie)
            num_bytes, lanes = lanes_of(states, beta)
            steps = programs_of(num_bytes, lanes)
            stepped = ExactlyStepped(states, group["digits"], fs, casts)
            back = (stepped, numels, num_bytes, steps, *exact)
            constants = {"FORM": form, "DIGITS_PER_BYTE": packed, "LANES": lanes}
        else:
            kernel, steps = passes.pass_kernel, programs_of(numels)
            scalars = as_scalars(states[0].dtype, 1.0 - beta, beta)
            back = (Stepped(states, fs, casts), numels, steps, *scalars)
        carried = (_carried(group), *as_scalars(group["grad"][0].dtype, *numbers))
        programs = steps + programs_of(numels)
        launch(kernel, programs, states[0], *back, *carried, **constants, BLOCK=BLOCK)


def _carried(group: Group) -> Carried:
    """The tensors of a pass that belong to its adjoint."""
    grads = group["grad"]
    vjps = laid_out_like(group["vjp"], grads)
    return Carried(grads, group.get("other"), vjps, group.get("seed"))


_TENSORS = ("state", "digits", "f", "cast", "grad", "other", "vjp", "seed")
"""The arguments that are leaves."""

invert_z_adjoint_y_ = partial(_pass, _FloatStep, _AdjointY)
invert_y_adjoint_z_ = partial(_pass, _FloatStep, _AdjointZ)
invert_y_adjoint_z0_ = partial(_pass, _FloatStep, _AdjointZ0)
invert_z_adjoint_y_exact_ = partial(_pass, _ExactStep, _AdjointY)
invert_y_adjoint_z_exact_ = partial(_pass, _ExactStep, _AdjointZ)
invert_y_adjoint_z0_exact_ = partial(_pass, _ExactStep, _AdjointZ0)
