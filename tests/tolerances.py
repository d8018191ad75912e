"""All tolerances of tests on float results, derived from the dtype, beta and the depth.

Notation: u is the unit roundoff of the dtype to which a result is rounded (2**-24 for float32), M a
bound on the magnitudes of the states and of f. Sums of roundings are first order, with a factor of
1.01 for higher orders; below the smallest normal number roundings are absolute, for which `tiny` is
added.

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
    """Error of `depth` updates with given f, undone by the same number of inversions.

    An inversion turns an error e of the state into e / |1-beta| plus its own error. The error of
    the corresponding update acts as a further error of the state. With r = 1 / |1-beta|, each
    inversion therefore obeys e <- r (e + update_error) + invert_error.
    """
    ratio = 1 / abs(1 - beta)
    error = 0.0
    for _ in range(depth):
        error = ratio * (error + update_error(dtype, beta, magnitude))
        error += invert_error(dtype, beta, magnitude + error)
    return error


def grid_error(frac_bits: int) -> float:
    """Distance of the exact update's result from real arithmetic on F and Y: half a grid step.

    Y' is the grid point nearest to (1-beta) Y + beta F, for the effective beta.
    """
    return 0.5 * 2.0**-frac_bits


BETA_ERROR = 1e-9
"""|effective_beta(beta) - beta|: |1-beta| is off by half a unit in Q's last even place, relatively
1 / Q < 2**-30, and |1-beta| < 1."""


def norm_error(numel: int) -> float:
    """Relative error of a norm of `residual` against real arithmetic, float64 throughout.

    A difference and its square: 3 u in the square. The sum: an element passes through at most 16
    rows, 8 halvings of the columns, all rows of chunks, and 8 halvings again, with one rounding
    each; all terms are positive, so there is no cancellation. The root halves the relative error
    and rounds once.
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
    """Error of a float pair that is reconstructed after `steps` steps.

    `beta` is one number, or one number per step.

    Every forward half step has the error `update_error`. Its inverse divides this by |1-beta|, adds
    `invert_error`, and evaluates f at a state with an error e_x of its own. With L a Lipschitz
    constant of f, e <- (e + beta L e_x + update_error) / |1-beta| + invert_error.
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
    """Error of a gradient compared to stored activations, relative to its largest element.

    Each of the 2 steps products is computed at a state with an error of at most `reconstruction`,
    which changes a Jacobian by `curvature` times that, and rounds sums of `terms` products in f's
    dtype.
    """
    return 2 * steps * (curvature * reconstruction + terms * unit_roundoff(f))


def beside_bound(
    steps: int, *, curvature: float, terms: int, magnitude: float, f: torch.dtype = torch.float32
) -> float:
    """The same for a float64 state, reconstructed far more precisely, that f reads in its dtype.

    Rounding to f's dtype may go the other way, so f's input has an error of at most two roundings.
    """
    read = 2 * unit_roundoff(f) * magnitude
    return gradient_bound(f, read, steps, curvature=curvature, terms=terms)


def assert_within(
    got: Iterable[Tensor | None], want: Iterable[Tensor | None], bound: float
) -> None:
    """Assert that each tensor's error is at most `bound` times the largest expected element."""
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a is None) == (b is None), i
        if a is not None and b is not None:
            off, largest = (float(t.detach().abs().max()) for t in (a - b, b))
            assert off <= bound * largest, (
                f"{i}: off by {off:.3g} of {largest:.3g}, not {bound:.3g}"
            )


def limit_error(residual: float, norm: float, lipschitz: float) -> float:
    """Distance of a state z with this norm from the fixed point z* of f, by its relative residual.

    |z - z*| <= |z - f(z)| + |f(z) - f(z*)| <= |z - f(z)| + L |z - z*|, with L < 1 a Lipschitz
    constant of f, and |z - f(z)| is residual (1e-5 + |f(z)|), as `fixed_point` defines it. |f(z)|
    is |z| to within that.
    """
    return 1.01 * residual * (1e-5 + norm) / (1 - lipschitz)
