"""The equilibrium cell in float64, and the tolerance of float32, element by element.

A running error analysis: each number of the float64 solve and its adjoint is accompanied by a bound
on its error in a float32 cell. u is the unit roundoff of float32, v that of a 16-bit w (0 for
float32); errors are first order with a factor of 1.01, as in ``tolerances.py``. Sums of d products
have an error of at most d u times the sum of their magnitudes, in any order, and also if products
are not rounded before they are added (fused multiply-adds).

A 16-bit copy of s is the same in both solves, unless s is closer to a rounding boundary than its
bound: then it is off by one unit in the last place, which enters the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from revdeq_kernels.dtypes import EPSILON
from tests.cell.linear_cells import ACTS, Cell, Outcome, stored
from tests.tolerances import BETA_ERROR, grid_error, invert_error, unit_roundoff

U = unit_roundoff(torch.float32)
ACT_ERROR = 8 * U
"""The error of act or act' in float32, relative to 1 + its value: four units in the last place."""


class Sums(NamedTuple):
    """How an implementation accumulates.

    product: the error of a single product, in U times its value.
    joined: whether products are added one by one to u (W s), to the adjoint (g W), and to the
        gradient of W (over all rows and half steps), instead of adding complete sums.
    """

    product: int = 0
    joined: bool = False


APART = Sums()

SPLIT = Sums(product=16)
"""Three TF32 products: 4 for the low part of each factor, 4 for the omitted product of both low
parts, and the additions of the three."""

JOINED = Sums(joined=True)


def sums_of(implementation: str, w: torch.dtype) -> Sums:
    """The sums of an implementation for this dtype of W."""
    if implementation == "gluon" and w == torch.float32:
        return SPLIT
    return JOINED if implementation == "cpu" else APART


class Bounded(NamedTuple):
    """Numbers, and bounds on the error of the cell's numbers."""

    value: Tensor
    error: Tensor

    @property
    def most(self) -> Tensor:
        """The largest magnitudes that the cell's numbers may have."""
        return self.value.abs() + self.error

    def __add__(self, other: object) -> Bounded:
        """A sum, rounded once."""
        assert isinstance(other, Bounded)
        value = self.value + other.value
        return Bounded(value, self.error + other.error + U * (self.most + other.most))

    def times(self, number: float) -> Bounded:
        """A product with a rounded number, itself rounded."""
        return Bounded(self.value * number, (self.error + 2 * U * self.most) * abs(number))


def exact(value: Tensor) -> Bounded:
    """Exact numbers, which are given to the cell."""
    return Bounded(value.double(), torch.zeros_like(value, dtype=torch.float64))


@dataclass
class Evaluation:
    """f at a state, and what its adjoint needs."""

    read: Bounded  # s as used in the product
    before: Bounded  # W s + u
    f: Bounded


def bounded(cell: Cell, sums: Sums = APART, rows: int | None = None) -> tuple[Outcome, Outcome]:
    """y, z and the gradients in float64, with a bound on the error of each element.

    `rows`: the number of rows for the gradient of W, if the cell has only part of them.
    """
    analysis = _Analysis(cell, sums, rows)
    y, z, evaluations = analysis.forward()
    if cell.state != "exact":
        evaluations = analysis.met_on_the_way_back(y, z, evaluations)
    grad_u, grad_w, grad_z0 = analysis.backward(evaluations)
    all_of_them = (y, z, grad_u, grad_w, grad_z0)
    return Outcome(*(b.value for b in all_of_them)), Outcome(*(1.01 * b.error for b in all_of_them))


def assert_within_bounds(cell: Cell, got: Outcome, sums: Sums = APART) -> None:
    """Assert that every element is within its bound of float64 autograd, and bounds are useful."""
    reference = stored(cell)
    values, errors = bounded(cell, sums)
    for name, want, value, error, result in zip(
        Outcome._fields, reference, values, errors, got, strict=True
    ):
        torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-10)  # what is analyzed
        assert error.norm() < 0.2 * want.norm(), f"{name}: the bound says nothing"
        far = (result.double() - want).abs() - error
        assert far.max() <= 0, f"{name} is {float(far.max()):.3g} beyond its bound"


def residuals(cell: Cell, sums: Sums = APART) -> list[Bounded]:
    """The residual of every row after every step that the cell takes."""
    analysis = _Analysis(cell, sums)
    analysis.forward()
    return analysis.residuals


class _Analysis:
    def __init__(self, cell: Cell, sums: Sums, rows: int | None = None) -> None:
        self.sums, self.residuals = sums, list[Bounded]()
        self.features = cell.w.shape[0]
        self.rows = cell.z0.shape[0] if rows is None else rows
        self.cell, self.act = cell, ACTS[cell.act]
        self.w, self.size = cell.w.double(), cell.w.double().abs()
        self.narrow = cell.w.dtype != torch.float32
        self.v = unit_roundoff(cell.w.dtype) if self.narrow else 0.0

    # ---- f ----

    def evaluate(self, s: Bounded) -> Evaluation:
        read = self._read(s)
        value = read.value @ self.w.t() + self.cell.u.double()
        terms, u = read.most @ self.size.t(), self.cell.u.double().abs()
        roundings = self._roundings(terms, u) + U * (terms + u)
        before = Bounded(value, read.error @ self.size.t() + roundings)
        f = self.act.function(value)
        f_error = self.act.slope * before.error + ACT_ERROR * (1 + f.abs())
        return Evaluation(read, before, Bounded(f, f_error))

    def _read(self, s: Bounded) -> Bounded:
        """The state that f reads: an exact state is rounded to float32; then s to w's dtype."""
        error = s.error + U * s.most
        if not self.narrow:
            return Bounded(s.value, error)
        value, low, high = (self._rounded(x) for x in (s.value, s.value - error, s.value + error))
        return Bounded(value, torch.maximum(high - value, value - low))

    def _roundings(self, terms: Tensor, start: Tensor) -> Tensor:
        """Of sums of d products with these sums of magnitudes; joined sums start at `start`."""
        error = (self.features + self.sums.product) * terms
        return U * (error + self.features * start if self.sums.joined else error)

    def _rounded(self, x: Tensor) -> Tensor:
        return x.to(self.cell.w.dtype).double()

    def slope(self, before: Bounded) -> Bounded:
        """act', by autograd; at relu's kink it may be either of two."""
        with torch.enable_grad():
            x = before.value.detach().requires_grad_()
            (value,) = torch.autograd.grad(self.act.function(x).sum(), x)
        error = self.act.curvature * before.error + ACT_ERROR
        if self.cell.act == "silu":  # f (1 - e) has the rounding error of e, which may be nearly 1
            error = error + ACT_ERROR * self.act.function(before.value).abs()
        if self.cell.act == "relu":
            error = (before.value.abs() <= before.error).double()
        return Bounded(value, error)

    # ---- the solve ----

    def forward(self) -> tuple[Bounded, Bounded, list[Evaluation]]:
        y = z = exact(self.cell.z0)
        evaluations = []
        for _ in range(self.cell.steps):
            evaluations.append(self.evaluate(z))
            y = self._update(y, evaluations[-1].f)
            evaluations.append(self.evaluate(y))
            self.residuals.append(self._residual(y, evaluations[-1].f))
            z = self._update(z, evaluations[-1].f)
        return y, z, evaluations

    def _update(self, s: Bounded, f: Bounded) -> Bounded:
        """As in ``update_error``; on the grid, f and the new state are each off by half a step."""
        beta = self.cell.beta
        value = (1 - beta) * s.value + beta * f.value
        error = abs(1 - beta) * s.error + beta * f.error
        if self.cell.state == "exact":
            grid = (1 + beta) * grid_error(self.cell.frac_bits)
            return Bounded(value, error + grid + BETA_ERROR * (s.most + f.most))
        return Bounded(value, error + 3 * U * (abs(1 - beta) * s.most + beta * f.most))

    def _residual(self, y: Bounded, f: Bounded) -> Bounded:
        """norm(y - f) / (1e-5 + norm(f)); y is rounded once, the sums are of d squares each."""
        norm = partial(torch.linalg.vector_norm, dim=1)
        far, size = norm(y.value - f.value), EPSILON + norm(f.value)
        error = norm(y.error + f.error + U * (2 * y.most + f.most)) + far / size * norm(f.error)
        roundings = (self.features + 8) * U * far / size
        return Bounded(far / size, error / (size - norm(f.error)) + roundings)

    def met_on_the_way_back(
        self, y: Bounded, z: Bounded, evaluations: list[Evaluation]
    ) -> list[Evaluation]:
        """The evaluations at a reconstructed float state."""
        beta = self.cell.beta
        states = {1: y, 0: z}  # by the state that is read: y in odd half steps
        met: list[Evaluation] = []
        for k in reversed(range(len(evaluations))):
            met.append(self.evaluate(states[k % 2]))
            f, other = met[-1].f, states[1 - k % 2]
            largest = float(torch.maximum(f.most, other.most).max())
            error = (other.error + beta * f.error) / abs(1 - beta)
            error = error + invert_error(torch.float32, beta, largest)
            states[1 - k % 2] = Bounded((other.value - beta * f.value) / (1 - beta), error)
        return met[::-1]

    # ---- the adjoint ----

    def backward(self, evaluations: list[Evaluation]) -> tuple[Bounded, Bounded, Bounded]:
        cell, beta = self.cell, self.cell.beta
        gy, gz = exact(cell.grad_y), exact(cell.grad_z)
        grad_u, grad_w = exact(torch.zeros_like(cell.u)), exact(torch.zeros_like(cell.w))
        for evaluation in reversed(evaluations):  # of f at y, then with y and z exchanged
            g = self._through_act(evaluation.before, gz.times(beta))
            grad_u = grad_u + g
            g = self._stored(g)
            grad_w = grad_w + self._outer(g, evaluation.read)
            error = g.error @ self.size + self._roundings(g.most @ self.size, gy.most)
            gy, gz = gz.times(1 - beta), gy + Bounded(g.value @ self.w, error)
        return self._stored(grad_u), self._stored(grad_w), gy + gz

    def _through_act(self, before: Bounded, seed: Bounded) -> Bounded:
        slope = self.slope(before)
        error = seed.most * slope.error + seed.error * slope.value.abs()
        return Bounded(seed.value * slope.value, error + 2 * U * seed.most * slope.most)

    def _stored(self, x: Bounded) -> Bounded:
        """x rounded to w's dtype, which has subnormal numbers."""
        return Bounded(x.value, x.error + self.v * (x.most + torch.finfo(self.cell.w.dtype).tiny))

    def _outer(self, g: Bounded, read: Bounded) -> Bounded:
        """The sum over the rows of the products of g and s."""
        terms = self.rows * (2 * self.cell.steps if self.sums.joined else 1)
        roundings = U * (terms + self.sums.product) * (g.most.t() @ read.most)
        error = g.error.t() @ read.most + g.value.abs().t() @ read.error
        return Bounded(g.value.t() @ read.value, error + roundings)
