"""The public functions of the backward pass: the adjoint, and the passes of one backward step.

A step forward is y <- (1-b) y + b f(z), then z <- (1-b) z + b f(y). Backwards it takes two products
of f's Jacobian with a seed, and after each of them one pass over memory:

    seed <- b grad_z                           (from the step before; b grad_z at the beginning)
    vjp = seed f'(y);  invert_z_adjoint_y_     z comes back, grad_y takes the product in
    vjp = seed f'(z);  invert_y_adjoint_z_     y comes back, grad_z takes the product in

and in the first step of the solve ``invert_y_adjoint_z0_`` in place of the last, where y = z and
the two gradients join. Gradients are float32, or float64 if f is. Every product and sum is rounded
once: the bits are those of the inverse and the adjoint one after the other, and of autograd's
sums. As in ``half_step.py``, lists of tensors stand for the leaves of a state.
"""

from __future__ import annotations

from ..core.registration import OPS
from .half_step import Leaves

_adjoint = OPS["adjoint_"]
_carry_y, _carry_y_exact = OPS["invert_z_adjoint_y_"], OPS["invert_z_adjoint_y_exact_"]
_carry_z, _carry_z_exact = OPS["invert_y_adjoint_z_"], OPS["invert_y_adjoint_z_exact_"]
_carry_z0, _carry_z0_exact = OPS["invert_y_adjoint_z0_"], OPS["invert_y_adjoint_z0_exact_"]


def adjoint_(grad: Leaves, vjp: Leaves, scale: float, beta: float, seed: Leaves) -> Leaves:
    """One half step of the backward pass, in place: grad <- scale grad + vjp; seed <- beta grad.

    `grad` is the gradient with respect to one of the states, carried from step to step; `vjp` is
    what f's vector-Jacobian product contributed to it; `seed` receives the cotangent for the next
    evaluation of f.

    Args:
        grad: float32, or float64 if f is. Any shape, dense in any order of its dimensions.
        vjp: of grad's shape, any strides. The dtype of `seed`, or float32 where f read a float32
            state and rounds by itself (autocast).
        scale: the factor of grad: 1 - beta, or 1.
        beta: the factor of the seed. A Python number, as `scale`.
        seed: of grad's shape and strides, in f's dtype. Overwritten.

    Returns:
        `grad`.

    Each product and the sum are rounded once, in grad's dtype: the bits are those of the same
    sequence in PyTorch. Memory: 2 sizeof(grad) + sizeof(vjp) + sizeof(seed) bytes per element, 12
    for bfloat16 f. Errors as for ``update_``.

    Source: arXiv 2509.12917, the adjoint of the reversible solver's step.
    """
    _adjoint((grad, seed), (vjp,), (grad, vjp, scale, beta, seed))
    return grad


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
    _carry_y((z, grad_y, seed), (f, vjp), args, cast)
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
    _carry_z((y, grad_z, seed), (f, vjp), args, cast)
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
    _carry_z0((y, grad_z), (f, grad_y, vjp), (y, f, beta, grad_z, grad_y, vjp))
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
    _carry_y_exact((z, grad_y, seed), (digits, f, vjp), args, cast)
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
    _carry_z_exact((y, grad_z, seed), (digits, f, vjp), args, cast)
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
    _carry_z0_exact((y, grad_z), (digits, f, grad_y, vjp), args)
    return y
