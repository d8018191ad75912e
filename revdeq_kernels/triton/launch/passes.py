"""Launches of the adjoint and of the passes of a backward step; see ``half_step.py``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from revdeq_kernels.exact_numbers import contraction, effective_beta

from ..kernels import half_step as kernels
from ..kernels import passes
from .leaves import (
    BLOCK,
    Group,
    Leaves,
    as_scalars,
    exact_step,
    grouped,
    laid_out_like,
    lanes_of,
    launch,
    numels_of,
    programs_of,
)


def adjoint_(grad: Leaves, vjp: Leaves, scale: float, beta: float, seed: Leaves) -> None:
    """See ``reference.adjoint_``."""
    for group in grouped(grad=grad, vjp=vjp, seed=seed):
        grads = group["grad"]
        numels = numels_of(grads)
        scalars = as_scalars(grads[0].dtype, scale, beta, 1.0)
        args = (grads, None, laid_out_like(group["vjp"], grads), group["seed"], numels, *scalars)
        launch(kernels.adjoint_kernel, programs_of(numels), grads[0], *args, BLOCK=BLOCK)


def invert_z_adjoint_y_(
    z: Leaves,
    f: Leaves,
    beta: float,
    grad_y: Leaves,
    vjp: Leaves,
    seed: Leaves,
    *,
    cast: Leaves | None = None,
) -> None:
    """See ``reference.invert_z_adjoint_y_``."""
    groups = grouped(state=z, f=f, grad=grad_y, vjp=vjp, seed=seed, cast=cast)
    _float_pass(groups, beta, (1.0, beta, 1.0 - beta))


def invert_y_adjoint_z_(
    y: Leaves,
    f: Leaves,
    beta: float,
    grad_z: Leaves,
    vjp: Leaves,
    next_beta: float,
    seed: Leaves,
    *,
    cast: Leaves | None = None,
) -> None:
    """See ``reference.invert_y_adjoint_z_``."""
    groups = grouped(state=y, f=f, grad=grad_z, vjp=vjp, seed=seed, cast=cast)
    _float_pass(groups, beta, (1.0 - beta, next_beta, 1.0))


def invert_y_adjoint_z0_(
    y: Leaves, f: Leaves, beta: float, grad_z: Leaves, grad_y: Leaves, vjp: Leaves
) -> None:
    """See ``reference.invert_y_adjoint_z0_``."""
    groups = grouped(state=y, f=f, grad=grad_z, other=grad_y, vjp=vjp)
    _float_pass(groups, beta, (1.0 - beta, 0.0, 1.0))


def invert_z_adjoint_y_exact_(
    z: Leaves,
    digits: Leaves,
    f: Leaves,
    beta: float,
    frac_bits: int,
    tie: int,
    grad_y: Leaves,
    vjp: Leaves,
    seed: Leaves,
    *,
    cast: Leaves | None = None,
) -> None:
    """See ``reference.invert_z_adjoint_y_exact_``."""
    groups = grouped(state=z, digits=digits, f=f, grad=grad_y, vjp=vjp, seed=seed, cast=cast)
    carry = (1.0, effective_beta(beta), contraction(beta).one_minus_beta)
    _exact_pass(groups, (beta, frac_bits, tie), carry)


def invert_y_adjoint_z_exact_(
    y: Leaves,
    digits: Leaves,
    f: Leaves,
    beta: float,
    frac_bits: int,
    tie: int,
    grad_z: Leaves,
    vjp: Leaves,
    next_beta: float,
    seed: Leaves,
    *,
    cast: Leaves | None = None,
) -> None:
    """See ``reference.invert_y_adjoint_z_exact_``."""
    groups = grouped(state=y, digits=digits, f=f, grad=grad_z, vjp=vjp, seed=seed, cast=cast)
    carry = (contraction(beta).one_minus_beta, effective_beta(next_beta), 1.0)
    _exact_pass(groups, (beta, frac_bits, tie), carry)


def invert_y_adjoint_z0_exact_(
    y: Leaves,
    digits: Leaves,
    f: Leaves,
    beta: float,
    frac_bits: int,
    tie: int,
    grad_z: Leaves,
    grad_y: Leaves,
    vjp: Leaves,
) -> None:
    """See ``reference.invert_y_adjoint_z0_exact_``."""
    groups = grouped(state=y, digits=digits, f=f, grad=grad_z, other=grad_y, vjp=vjp)
    _exact_pass(groups, (beta, frac_bits, tie), (contraction(beta).one_minus_beta, 0.0, 1.0))


def _carried(group: Group) -> tuple[Any, ...]:
    """The tensors of a pass that belong to its adjoint."""
    grads = group["grad"]
    vjps = laid_out_like(group["vjp"], grads)
    return grads, group.get("other"), vjps, group.get("seed")


def _float_pass(groups: Iterator[Group], beta: float, carry: tuple[float, float, float]) -> None:
    for group in groups:
        states = group["state"]
        numels = numels_of(states)
        steps = programs_of(numels)
        launch(
            passes.pass_kernel,
            2 * steps,
            states[0],
            *(states, laid_out_like(group["f"], states), group.get("cast"), numels, steps),
            *(*as_scalars(states[0].dtype, 1.0 - beta, beta), *_carried(group)),
            *as_scalars(group["grad"][0].dtype, *carry),
            BLOCK=BLOCK,
        )


def _exact_pass(
    groups: Iterator[Group], numbers: tuple[float, int, int], carry: tuple[float, float, float]
) -> None:
    form, packed, step = exact_step(*numbers)
    for group in groups:
        states = group["state"]
        numels = numels_of(states)
        num_bytes, lanes = lanes_of(states, numbers[0])
        steps = programs_of(num_bytes, lanes)
        launch(
            passes.exact_pass_kernel,
            steps + programs_of(numels),
            states[0],
            *(states, group["digits"], laid_out_like(group["f"], states), group.get("cast")),
            *(numels, num_bytes, steps, *step, *_carried(group), *carry),
            FORM=form,
            DIGITS_PER_BYTE=packed,
            LANES=lanes,
            BLOCK=BLOCK,
        )
