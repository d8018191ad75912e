"""The passes of a backward step: an inverse half step fused with the adjoint of the other state.

A forward step is y <- (1-b) y + b f(z), then z <- (1-b) z + b f(y). Its backward pass needs two
products of a seed with the Jacobian of f, each followed by one pass over memory:

    seed <- b grad_z                           (by the previous pass, or initially)
    vjp = seed f'(y);  invert_z_adjoint_y_     reconstructs z, adds the product to grad_y
    vjp = seed f'(z);  invert_y_adjoint_z_     reconstructs y, adds the product to grad_z

The backward pass of a solve ends at its first step, where y = z: there ``invert_y_adjoint_z0_``
replaces the second pass and adds up the two gradients. Gradients are float32, or float64 if f is
float64. Every product and sum is rounded once, so the result is bitwise identical to the inverse
followed by the adjoint, and to autograd's sums.
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
    """The arguments of a pass, independent of their names in its op; None if it has none."""

    state: Tensor
    f: Tensor
    beta: float
    grad: Tensor
    vjp: Tensor
    seed: Any = None
    other: Any = None
    """The gradient that is added to `grad` in the first step of a solve."""
    next_beta: Any = None
    digits: Any = None
    frac_bits: Any = None
    tie: Any = None
    cast: Any = None


# ---- the definition --------------------------------------------------------------------------


def define_pass(p: Pass) -> None:
    """The inverse, then the adjoint."""
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


# ---- argument checks -------------------------------------------------------------------------


def check_pass(op: str, named: dict[str, str], p: Pass) -> Memory:
    """Check a pass; `named` maps its arguments to their names in the op."""
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
    """One of the six passes, derived from its name: which state, exact or not, last or not."""
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
        instead="the forward half steps in plain PyTorch",
        dtypes=_dtypes(exact, start),
        equation=equation,
        kernels=("exact_pass_kernel" if exact else "pass_kernel",),
    )


def _dtypes(exact: bool, start: bool) -> list[Dtypes]:
    """The dtypes of state, digits, f, gradients and vjp; unless last, also of seed and cast."""
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
    """The first pass of a backward step, in place: reconstructs z and updates grad_y.

        z <- (z - beta f) / (1 - beta)
        grad_y <- grad_y + vjp;  seed <- beta grad_y;  grad_y <- (1 - beta) grad_y

    Args:
        z: as `state` in ``invert_``. Overwritten with z before this step.
        f: f(y) for the new y of this step, which the update of z read. Dtypes as in ``invert_``.
        beta: the beta of this step, in (0, 2) and not 1.
        grad_y: the shape of z, dense. float32, or float64 if f is float64. Overwritten.
        vjp: the product of the seed with the Jacobian of f at y. The dtype of f, or float32.
        seed: the shape and strides of grad_y, the dtype of f. Overwritten with the seed of the
            second pass.
        cast: as in ``invert_``: receives the new z in the dtype that f reads next.

    Returns:
        `z`.

    Memory: the traffic of ``invert_`` plus that of ``adjoint_`` in one launch, 12 + 12 bytes per
    element for float32 states with bfloat16 f and cast. Raises the same errors as ``update_``.

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
    """The second pass of a backward step, in place: reconstructs y and updates grad_z.

        y <- (y - beta f) / (1 - beta)
        grad_z <- (1 - beta) grad_z + vjp;  seed <- next_beta grad_z

    `f` is f(z) for the z that the first pass reconstructed. `next_beta` is the beta of the next
    step of the backward pass, which is the preceding step of the solve. Everything else is as in
    ``invert_z_adjoint_y_``, with y and z exchanged.
    """
    args = (y, f, beta, grad_z, vjp, next_beta, seed)
    _carry_z(args, cast)
    return y


def invert_y_adjoint_z0_(
    y: Leaves, f: Leaves, beta: float, grad_z: Leaves, grad_y: Leaves, vjp: Leaves
) -> Leaves:
    """The last pass of a backward pass from y = z = z0: grad_z becomes the gradient of z0.

        y <- (y - beta f) / (1 - beta)
        grad_z <- ((1 - beta) grad_z + grad_y) + vjp

    `grad_y` is the result of the first pass of this step, with the strides of grad_z; it is only
    read. There is no seed and no cast, because no evaluation of f follows. The rest is as in
    ``invert_y_adjoint_z_``, which is the last pass if y and z had different initial states.

    Memory: the traffic of ``invert_``, plus 3 sizeof(grad) + sizeof(vjp) bytes per element.
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
    """``invert_z_adjoint_y_`` on an exact state: reconstructs z bit for bit (``invert_exact_``).

    The adjoint uses ``effective_beta(beta)``, like the update. Arguments as in these two ops.
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
    """``invert_y_adjoint_z_`` on an exact state: reconstructs y bit for bit (``invert_exact_``).

    The adjoint uses ``effective_beta`` of both betas. Arguments as in these two ops.
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
    """``invert_y_adjoint_z0_`` on an exact state: reconstructs y bit for bit (``invert_exact_``).

    The adjoint uses ``effective_beta(beta)``. Arguments as in these two ops.
    """
    args = (y, digits, f, beta, frac_bits, tie, grad_z, grad_y, vjp)
    _carry_z0_exact(args)
    return y
