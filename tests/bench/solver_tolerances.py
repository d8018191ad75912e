"""Bounds on the rounding error of a solve's gradient, from an analysis along its float64 path.

First order, in norms over all elements, with the notation of ``tolerances.py``. The path provides
the norm L of f's Jacobian and its rate of change C; f rounds sums of `terms` products of numbers
with the magnitude M of the states. Cancellation in a sum of gradients is ignored, so a solve with
an almost vanishing gradient needs a larger bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.solver.models import Model
from tests.tolerances import grid_error, invert_error, unit_roundoff, update_error


@dataclass
class Evaluation:
    """f in one half step, at a state of norm `size`."""

    lipschitz: float
    size: float


@dataclass
class Path:
    """The evaluations of f in the float64 solve; C, M and sqrt(n) of a state of n numbers."""

    evaluations: list[Evaluation]
    curvature: float
    magnitude: float
    scale: float


def path_of(model: Model, beta: float, steps: int) -> Path:
    """The solve in float64, and f's Jacobian at each of its states."""
    model = model.to(torch.float64)
    state = [model.z0, model.z0]  # y, z
    evaluations, jacobians, reads, values = [], [], [], []
    for k in range(2 * steps):
        read = state[1 - k % 2]
        jacobians.append(_jacobian(model, read))
        norm = float(torch.linalg.matrix_norm(jacobians[-1], 2))
        evaluations.append(Evaluation(norm, float(read.norm())))
        value = model.f(read, model.x).detach()
        reads.append(read)
        values.append(value)
        state[k % 2] = torch.lerp(state[k % 2], value, beta)
    changes = [
        float(torch.linalg.matrix_norm(after - before, 2) / (b - a).norm())
        for before, after, a, b in zip(jacobians, jacobians[1:], reads, reads[1:], strict=False)
        if not torch.equal(a, b)
    ]
    magnitude = max(float(t.abs().max()) for t in (*reads, *values))
    return Path(evaluations, max(changes), magnitude, math.sqrt(model.z0.numel()))


def _jacobian(model: Model, at: Tensor) -> Tensor:
    n = at.numel()
    rows = torch.autograd.functional.jacobian(lambda s: model.f(s, model.x), at)
    assert isinstance(rows, Tensor)
    return rows.reshape(n, n)


def terms_of(model: Model) -> int:
    """The number of products in the sums of f, added up over its layers."""
    return sum(p.shape[1:].numel() for p in model.parameters if p.dim() > 1)


def stored_error(
    model: Model, path: Path, beta: float, frac_bits: int | None = None
) -> list[float]:
    """Errors of the states that f reads if they are stored: the roundings of forward steps.

    e <- |1-beta| e + beta (L e_read + terms u M) + update_error; on the grid, where f and the new
    state are each off by half a step, with grid_error added.
    """
    f_error = terms_of(model) * unit_roundoff(model.dtype) * path.magnitude
    step = update_error(model.dtype, beta, path.magnitude)
    if frac_bits is not None:
        step += (1 + beta) * grid_error(frac_bits)
    error, found = [0.0, 0.0], []
    for k, at in enumerate(path.evaluations):
        read = error[1 - k % 2]
        found.append(read)
        through_f = beta * (at.lipschitz * read + f_error * path.scale)
        error[k % 2] = abs(1 - beta) * error[k % 2] + through_f + step * path.scale
    return found


def walked_error(
    model: Model, path: Path, beta: float, state: torch.dtype, *, stored: list[float]
) -> list[float]:
    """Errors of the states that f reads in the backward pass if a float state is reconstructed.

    As in ``reconstruction_bound``, with the L of each half step: e <- (e + beta L e_read +
    update_error) / |1-beta| + invert_error, in addition to the roundings of forward steps. f reads
    a state in its own dtype, so any error may add one rounding of that dtype.
    """
    update = update_error(state, beta, path.magnitude) * path.scale
    invert = invert_error(state, beta, path.magnitude) * path.scale
    narrow = unit_roundoff(model.dtype) if model.dtype != state else 0.0
    error, found = [0.0, 0.0], []
    for k in reversed(range(len(path.evaluations))):
        at = path.evaluations[k]
        read = error[1 - k % 2] + narrow * at.size
        found.append(stored[k] + read)
        error[k % 2] = (error[k % 2] + beta * at.lipschitz * read + update) / abs(1 - beta) + invert
    return found[::-1]


def gradient_error(model: Model, path: Path, states: list[float]) -> float:
    """Relative error of the gradient's norm, from the errors of the states that f reads.

    As in ``gradient_bound``: the relative error of a product with J is C e / L, that of a product
    for the parameters is e over the size of the largest state, and both round sums of `terms`
    products.
    """
    u = unit_roundoff(model.dtype)
    largest = max(at.size for at in path.evaluations)
    total = 0.0
    for at, error in zip(path.evaluations, states, strict=True):
        total += (path.curvature / at.lipschitz + 1 / largest) * error + terms_of(model) * u
    assert total < 0.1, f"the bound says nothing: {total:.2g}"
    return 1.01 * total
