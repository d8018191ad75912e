"""The passes of a backward step: an inverse half step, and the adjoint of the other state, in one.

A step forward is y <- (1-b) y + b f(z), then z <- (1-b) z + b f(y). Backwards it takes two products
of f's Jacobian with a seed, and after each of them one pass over memory:

    seed <- b grad_z                           (from the step before; b grad_z at the beginning)
    vjp = seed f'(y);  invert_z_adjoint_y_     z comes back, grad_y takes the product in
    vjp = seed f'(z);  invert_y_adjoint_z_     y comes back, grad_z takes the product in

and in the first step of the solve ``invert_y_adjoint_z0_`` in place of the last, where y = z and
the two gradients join. Gradients are float32, or float64 if f is. Every product and sum is rounded
once: the bits are those of the inverse and the adjoint one after the other, and of autograd's
sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.checks import (
    EXACT_F_DTYPES,
    F32,
    Memory,
    check_beta,
    check_device,
    check_dtype,
    check_shape,
    check_tensors,
)
from ..core.lists import Leaves
from ..core.op import Op
from ..core.roles import (
    BETA,
    CAST,
    DENSE,
    DIGITS,
    EXACT_BETA,
    EXACT_CASES,
    EXACT_NUMBERS,
    FLOAT_CASES,
    FLOAT_PAIRS,
    FREE,
    LIKE,
    Argument,
    Dtypes,
    vjps,
    wide,
)
from ..exact_numbers import contraction, effective_beta
from .adjoint import check_carried, define_adjoint
from .exact_step import check_exact_step, define_invert_exact
from .half_step import check_float_step, define_invert


class Pass(NamedTuple):
    """The arguments of a pass, whatever its op calls them; None where it has none."""

    state: Tensor
    f: Tensor
    beta: float
    grad: Tensor
    vjp: Tensor
    seed: Any = None
    other: Any = None
    """The gradient that joins `grad` at the start of a solve."""
    next_beta: Any = None
    digits: Any = None
    frac_bits: Any = None
    tie: Any = None
    cast: Any = None


# ---- the definition --------------------------------------------------------------------------


def define_pass(p: Pass) -> None:
    """The inverse and then the adjoint, and no more than their sequence."""
    keep, beta, next_beta = 1.0 - p.beta, p.beta, p.next_beta
    if p.digits is None:
        define_invert(p.state, p.f, p.beta, cast=p.cast)
    else:
        step = (p.digits, p.f, p.beta, p.frac_bits, p.tie)
        define_invert_exact(p.state, *step, cast=p.cast)
        keep, beta = contraction(p.beta).one_minus_beta, effective_beta(p.beta)
        next_beta = None if next_beta is None else effective_beta(next_beta)
    factor = torch.tensor(keep, dtype=p.grad.dtype, device=p.grad.device)
    if p.other is not None:
        p.grad.copy_((factor * p.grad + p.other) + p.vjp.to(p.grad.dtype))
    elif next_beta is not None:
        define_adjoint(p.grad, p.vjp, keep, next_beta, p.seed)
    else:
        define_adjoint(p.grad, p.vjp, 1.0, beta, p.seed)
        p.grad.mul_(factor)


# ---- what is asked of the arguments ----------------------------------------------------------


def check_pass(op: str, named: dict[str, str], p: Pass) -> Memory:
    """Check a pass; `named` says what its op calls the arguments that it has."""
    lead, grad, exact = named["state"], named["grad"], "digits" in named
    if exact:
        step = (p.digits, None, p.f, p.beta, p.frac_bits, p.tie)
        memory = check_exact_step(op, lead, p.state, *step, p.cast)
    else:
        memory = check_float_step(op, lead, p.state, p.f, p.beta, p.cast)
    if "next_beta" in named:
        check_beta(op, "next_beta", p.next_beta, exact)
    carried = [field for field in ("grad", "other", "vjp", "seed") if field in named]
    check_tensors(op, **{named[field]: getattr(p, field) for field in carried})
    real = wide(p.f.dtype)
    for field in carried[: carried.index("vjp")]:
        check_dtype(op, named[field], getattr(p, field), (real,), f" for an f of {p.f.dtype}")
    if p.f.dtype == real:
        check_dtype(op, "vjp", p.vjp, (real,), ", the dtype of f")
    else:
        check_dtype(op, "vjp", p.vjp, (p.f.dtype, F32), ", the dtype of f or float32")
    if "seed" in named:
        check_dtype(op, "seed", p.seed, (p.f.dtype,), ", the dtype of f")
    check_device(op, grad, p.grad, p.f, "f")
    check_shape(op, grad, p.grad, p.f, "f")
    return [*memory, *check_carried(op, grad, p.grad, p.other, p.vjp, p.seed)]


# ---- the ops ---------------------------------------------------------------------------------


def _op(name: str, equation: str) -> Op:
    """One of the six: its name says what goes back, whether it is exact, and whether it is last."""
    state, grad = ("z", "grad_y") if name.startswith("invert_z") else ("y", "grad_z")
    exact, start = "exact" in name, "z0" in name
    beta = EXACT_BETA if exact else BETA
    middle = (Argument("digits", DIGITS),) if exact else ()
    arguments = {"state": Argument(state, DENSE, written=True)}
    arguments |= {a.name: a for a in (*middle, Argument("f", FREE))}
    arguments |= {a.name: a for a in (EXACT_NUMBERS if exact else (Argument("beta", beta),))}
    arguments["grad"] = Argument(grad, DENSE, written=True)
    if start:
        arguments["other"] = Argument("grad_y", LIKE)
    arguments["vjp"] = Argument("vjp", FREE)
    if grad == "grad_z" and not start:
        arguments["next_beta"] = Argument("next_beta", beta)
    if not start:
        arguments |= {"seed": Argument("seed", LIKE, written=True), "cast": CAST}
    named = {field: a.name for field, a in arguments.items()}
    fields = [field for field, a in arguments.items() if not a.optional]

    def taken(args: tuple[Any, ...], cast: Any) -> Pass:
        return Pass(**dict(zip(fields, args, strict=True)), cast=cast)

    return Op(
        name,
        tuple(arguments.values()),
        lambda *args, cast=None: define_pass(taken(args, cast)),
        lambda op, *args, cast=None: check_pass(op, named, taken(args, cast)),
        instead="the updates themselves, unrolled",
        dtypes=_dtypes(exact, start),
        equation=equation,
        kernels=("exact_pass_kernel" if exact else "pass_kernel",),
    )


def _dtypes(exact: bool, start: bool) -> list[Dtypes]:
    """Of the state, digits, f, the gradients, vjp, and, but for the start, seed and cast."""
    if start:
        pairs = [(torch.int32, torch.uint8, f) for f in EXACT_F_DTYPES] if exact else FLOAT_PAIRS
        return [(*first, f, wide(f), wide(f), vjp) for *first, f in pairs for vjp in vjps(f)]
    cases = [(torch.int32, torch.uint8, *case) for case in EXACT_CASES] if exact else FLOAT_CASES
    return [(*first, f, wide(f), vjp, f, cast) for *first, f, cast in cases if f for vjp in vjps(f)]


_carry_y = _op(
    "invert_z_adjoint_y_",
    "z <- (z - beta f) / (1 - beta); grad_y <- grad_y + vjp; seed <- beta grad_y; "
    "grad_y <- (1 - beta) grad_y",
)
_carry_z = _op(
    "invert_y_adjoint_z_",
    "y <- (y - beta f) / (1 - beta); grad_z <- (1 - beta) grad_z + vjp; seed <- next_beta grad_z",
)
_carry_z0 = _op(
    "invert_y_adjoint_z0_",
    "y <- (y - beta f) / (1 - beta); grad_z <- ((1 - beta) grad_z + grad_y) + vjp",
)
_carry_y_exact = _op(
    "invert_z_adjoint_y_exact_", "z as in invert_exact_; grad_y and seed as in invert_z_adjoint_y_"
)
_carry_z_exact = _op(
    "invert_y_adjoint_z_exact_", "y as in invert_exact_; grad_z and seed as in invert_y_adjoint_z_"
)
_carry_z0_exact = _op(
    "invert_y_adjoint_z0_exact_", "y as in invert_exact_; grad_z as in invert_y_adjoint_z0_"
)

# ---- the public functions ---------------------------------------------------------------------


def invert_z_adjoint_y_(
    z: Leaves,
    f: Leaves,
    beta: float,
    grad_y: Leaves,
    vjp: Leaves,
    seed: Leaves,
    *,
    cast: Leaves | None = None,
) -> Leaves:
    """The first pass of a backward step, in place: z goes back, grad_y takes in what f'(y) gave.

        z <- (z - beta f) / (1 - beta)
        grad_y <- grad_y + vjp;  seed <- beta grad_y;  grad_y <- (1 - beta) grad_y

    Args:
        z: as `state` in ``invert_``. Overwritten.
        f: f(y), of this step's new y: what the update of z added. Dtypes as in ``invert_``.
        beta: in (0, 2) and not 1, that of this step.
        grad_y: of z's shape, dense. float32, or float64 for a float64 f. Overwritten.
        vjp: the product of the seed with the Jacobian of f at y. f's dtype, or float32.
        seed: of grad_y's shape and strides, in f's dtype. Overwritten with the next seed, for z.
        cast: as in ``invert_``: the new z, in the dtype that f reads next.

    Returns:
        `z`.

    Memory: that of ``invert_`` and that of ``adjoint_``, 12 + 12 bytes per element for float32
    states with bfloat16 f and cast, in one launch. Errors as for ``update_``.

    Source: arXiv 2509.12917, the reversible solver's backward step and its adjoint.
    """
    args = (z, f, beta, grad_y, vjp, seed)
    _carry_y(args, cast)
    return z


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
) -> Leaves:
    """The second pass of a backward step, in place: y goes back, grad_z takes in what f'(z) gave.

        y <- (y - beta f) / (1 - beta)
        grad_z <- (1 - beta) grad_z + vjp;  seed <- next_beta grad_z

    `f` is f(z), of the z that the first pass brought back; `next_beta` that of the step which comes
    next, one earlier in the solve. Everything else is as in ``invert_z_adjoint_y_``, with y and z
    exchanged.
    """
    args = (y, f, beta, grad_z, vjp, next_beta, seed)
    _carry_z(args, cast)
    return y


def invert_y_adjoint_z0_(
    y: Leaves, f: Leaves, beta: float, grad_z: Leaves, grad_y: Leaves, vjp: Leaves
) -> Leaves:
    """The last pass of a backward solve that began with y = z: grad_z becomes the start's gradient.

        y <- (y - beta f) / (1 - beta)
        grad_z <- ((1 - beta) grad_z + grad_y) + vjp

    `grad_y` is as the first pass of the step left it, and has the strides of grad_z. It is only
    read. There is no seed and no cast: nothing comes after. The rest is as in
    ``invert_y_adjoint_z_``, which takes its place where y and z began apart.

    Memory: that of ``invert_`` and 3 sizeof(grad) + sizeof(vjp) bytes per element.
    """
    _carry_z0((y, f, beta, grad_z, grad_y, vjp))
    return y


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
) -> Leaves:
    """``invert_z_adjoint_y_`` on an exact state: z comes back as in ``invert_exact_``, bit for bit.

    The adjoint has ``effective_beta(beta)`` for beta, as the update had. Arguments as in the two.
    """
    args = (z, digits, f, beta, frac_bits, tie, grad_y, vjp, seed)
    _carry_y_exact(args, cast)
    return z


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
) -> Leaves:
    """``invert_y_adjoint_z_`` on an exact state: y comes back as in ``invert_exact_``, bit for bit.

    The adjoint has the effective value of either beta. Arguments as in the two.
    """
    args = (y, digits, f, beta, frac_bits, tie, grad_z, vjp, next_beta, seed)
    _carry_z_exact(args, cast)
    return y


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
) -> Leaves:
    """``invert_y_adjoint_z0_`` on an exact state: y comes back as in ``invert_exact_``.

    The adjoint has ``effective_beta(beta)`` for beta. Arguments as in the two.
    """
    args = (y, digits, f, beta, frac_bits, tie, grad_z, grad_y, vjp)
    _carry_z0_exact(args)
    return y
