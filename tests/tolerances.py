"""Every bound that a test of float results allows, derived from the dtype, beta and the depth.

Notation: u is the unit roundoff of the dtype in which a result is rounded (2**-24 for float32), M a
bound on the magnitudes of the states and of f. Sums of roundings are kept to first order, with a
factor of 1.01 for the higher orders; below the smallest normal number roundings are absolute, which
`tiny` adds.

Exact ops have no tolerance: their results are compared bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance between 1 and the next number: the largest relative error of a rounding."""
    return torch.finfo(dtype).eps / 2


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a half step on states of `dtype` is computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def update_error(dtype: torch.dtype, beta: float, magnitude: float) -> float:
    """Error of one update_ against real arithmetic on the same stored numbers.

    Computed: fl(fl(a y) + fl(b f)) with a = fl(1 - beta), b = fl(beta). Relative errors: u for a
    and b, u for the products, u for the sum: 3 u (|a y| + |b f|) in the compute dtype, at most
    3 u (|1-beta| + beta) M. Then one rounding to `dtype` of a result no larger than that.
    """
    bound = (abs(1 - beta) + beta) * magnitude
    u = unit_roundoff(compute_dtype(dtype))
    stored = 0.0 if dtype == compute_dtype(dtype) else unit_roundoff(dtype)
    return 1.01 * (3 * u + stored) * bound + torch.finfo(dtype).tiny


def invert_error(dtype: torch.dtype, beta: float, magnitude: float) -> float:
    """Error of one invert_ against real arithmetic on the same stored numbers.

    Computed: fl(fl(y' - fl(b f)) / a). The numerator has 2 u |b f| from b and the product and u of
    itself from the difference, at most u (M + 3 beta M); the quotient adds u for a and u for the
    division: 2 u (M + beta M). Divided by |1-beta|, then one rounding to `dtype`.
    """
    u = unit_roundoff(compute_dtype(dtype))
    stored = 0.0 if dtype == compute_dtype(dtype) else unit_roundoff(dtype)
    bound = (3 + 5 * beta) * u + (1 + beta) * stored
    return 1.01 * bound * magnitude / abs(1 - beta) + torch.finfo(dtype).tiny / abs(1 - beta)


def adjoint_error(dtype: torch.dtype, scale: float, magnitude: float) -> float:
    """Error of adjoint_'s grad against real arithmetic on the same stored numbers.

    Computed: fl(fl(fl(s) g) + v). Relative errors: u for s and u for the product, 2 u |s g|, then u
    of a sum no larger than |s g| + |v|: at most u (3 |s| + 1) M.
    """
    bound = (3 * abs(scale) + 1) * magnitude
    return 1.01 * unit_roundoff(dtype) * bound + torch.finfo(dtype).tiny * (1 + magnitude)


def seed_error(dtype: torch.dtype, stored: torch.dtype, beta: float, magnitude: float) -> float:
    """Error of adjoint_'s seed against real arithmetic on the new grad, at most M.

    Computed: fl(fl(b) g) in grad's dtype, 2 u |b g|, then one rounding to the seed's.
    """
    u = 2 * unit_roundoff(dtype) + (0.0 if stored == dtype else unit_roundoff(stored))
    tiny = torch.finfo(dtype).tiny * (1 + magnitude) + torch.finfo(stored).tiny
    return 1.01 * u * abs(beta) * magnitude + tiny


def round_trip_error(dtype: torch.dtype, beta: float, depth: int, magnitude: float) -> float:
    """Error of `depth` updates with given f, undone by as many inversions with the same f.

    Going back, an error e of the state becomes e / |1-beta| plus that of the inversion. The update
    that led to the state erred as well, which the inversion sees as an error of the state. So with
    r = 1 / |1-beta| each step back obeys e <- r (e + update_error) + invert_error.
    """
    ratio = 1 / abs(1 - beta)
    error = 0.0
    for _ in range(depth):
        error = ratio * (error + update_error(dtype, beta, magnitude))
        error += invert_error(dtype, beta, magnitude + error)
    return error


def grid_error(frac_bits: int) -> float:
    """Distance of the exact update's result from real arithmetic on F and Y: half a grid step.

    Y' is the grid point nearest to (1-beta) Y + beta F, with beta the effective one.
    """
    return 0.5 * 2.0**-frac_bits


BETA_ERROR = 1e-9
"""|effective_beta(beta) - beta|: |1-beta| is off by half a unit in Q's last even place, relatively
1 / Q < 2**-30, and |1-beta| < 1."""


def norm_error(numel: int) -> float:
    """Relative error of a norm of `residual` against real arithmetic, float64 throughout.

    A difference, its square: 3 u in the square. The sum: an element passes through at most 16 rows,
    8 halvings of the columns, as many rows of chunks as there are, and 8 halvings again, a rounding
    each; all terms are positive, so relative errors do not grow by cancellation. The root halves
    what came before it and rounds once.
    """
    u = unit_roundoff(torch.float64)
    additions = 16 + 8 + -(-numel // (4096 * 256)) + 8
    return 1.01 * ((3 + additions) / 2 + 1) * u


def reconstruction_bound(
    dtype: torch.dtype,
    beta: float | Sequence[float],
    steps: int,
    *,
    lipschitz: float,
    magnitude: float,
) -> float:
    """How far from its start a float pair may be after `steps` steps forward and back.

    `beta` is one number, or one for each step.

    Forward, every half step rounds by `update_error`; its inverse divides that by |1-beta|, adds
    `invert_error`, and evaluates f at a state that is off itself: with e_x the error of that state
    and L a Lipschitz constant of f, e <- (e + beta L e_x + update_error) / |1-beta| + invert_error.
    """
    betas = [*beta] if isinstance(beta, Sequence) else [beta] * steps
    y = z = 0.0
    for b in reversed(betas):
        keep = abs(1 - b)
        forward = update_error(dtype, b, magnitude)
        back = invert_error(dtype, b, magnitude)
        z = (z + b * lipschitz * y + forward) / keep + back
        y = (y + b * lipschitz * z + forward) / keep + back
    return max(y, z)


def gradient_bound(
    f: torch.dtype, reconstruction: float, steps: int, *, curvature: float, terms: int
) -> float:
    """How far a gradient may be from that of stored activations, relative to its largest element.

    Each of the 2 steps products is taken at a state off by at most `reconstruction`, which changes
    a Jacobian by `curvature` times that, and rounds sums of `terms` products in f's dtype.
    """
    return 2 * steps * (curvature * reconstruction + terms * unit_roundoff(f))


def beside_bound(
    steps: int, *, curvature: float, terms: int, magnitude: float, f: torch.dtype = torch.float32
) -> float:
    """The same where a float64 state, which comes back to within far less, is read in f's dtype.

    A rounding to f's dtype may go the other way: what f reads is off by two roundings at most.
    """
    read = 2 * unit_roundoff(f) * magnitude
    return gradient_bound(f, read, steps, curvature=curvature, terms=terms)


def assert_within(
    got: Iterable[Tensor | None], want: Iterable[Tensor | None], bound: float
) -> None:
    """Each tensor is off by at most `bound` times the largest element of what it should be."""
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a is None) == (b is None), i
        if a is not None and b is not None:
            off, largest = (float(t.detach().abs().max()) for t in (a - b, b))
            assert off <= bound * largest, (
                f"{i}: off by {off:.3g} of {largest:.3g}, not {bound:.3g}"
            )


def limit_error(residual: float, norm: float, lipschitz: float) -> float:
    """How far from the fixed point z* of f a state z of that norm is, by its relative residual.

    |z - z*| <= |z - f(z)| + |f(z) - f(z*)| <= |z - f(z)| + L |z - z*|, with L < 1 a Lipschitz
    constant of f, and |z - f(z)| is residual (1e-5 + |f(z)|), as `fixed_point` defines it. |f(z)|
    is |z| to within that.
    """
    return 1.01 * residual * (1e-5 + norm) / (1 - lipschitz)
