"""Broyden's method: a quasi-Newton iteration to a fixed point, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..options.values import shown
from .rows import as_leaves, as_rows
from .solvers import Map, Run, check_batched, check_memory, number, relative_residual


@dataclass(frozen=True)
class Broyden:
    """Quasi-Newton steps on g(z) = f(z) - z, with a Jacobian estimated from the steps taken.

    "Good" Broyden: of all Jacobians consistent with the last step, it takes the one nearest to the
    last estimate; the first estimate is -1 / beta. f need not be a contraction, so it can reach
    equilibria that plain iteration cannot. Returns the state with the smallest norm(g).

    Args:
        memory: number of steps to remember, at least 1. The oldest is dropped first, as if the
            method had started after it.
        beta: the share of f in the first step, above 0.
        batched: solve each row of the first dimension separately, as for a batch of independent
            problems, and keep the best state of each row. All leaves must have the same first
            dimension. False: all elements are one problem.

    If f returns Inf or NaN, the step is halved towards the best state until f is finite. Singular
    updates are skipped. There is no line search: on equilibrium cells it took more evaluations than
    it saved.

    Memory: 2 min(memory, max_steps - 1) states, in float32 or float64. Each step reads that memory
    one and a half times, and solves a linear system of size `memory` per row.

    Source: Broyden, Math. Comp. 19, 1965; Byrd, Nocedal and Schnabel, Math. Programming 63, 1994
    (the update as one small linear system); Bai, Kolter and Koltun, arXiv 1909.01377 (its use).
    """

    memory: int = 16
    beta: float = 1.0
    batched: bool = False

    def __post_init__(self) -> None:
        """ValueError for an invalid option."""
        check_memory(self.memory, 1)
        if not 0 < number(self.beta) < math.inf:
            raise ValueError(f"beta: expected a number above 0, got {shown(self.beta)}")
        check_batched(self.batched)

    def run(self, f: Map, z: list[Tensor], tol: float, max_steps: int) -> Run:
        """Iterate from z until the relative residual of the best state is below tol."""
        like, x = z, self._rows(z)
        g = self._rows(f(z)) - x
        best = _Best(like, x, g)
        updates = _Updates(min(self.memory, max_steps - 1), self.beta)
        target, steps = x + self.beta * g, 1
        while steps < max_steps and best.residual >= tol:  # ends if it is NaN
            z = as_leaves(target, like)
            tried = self._rows(z)  # as f reads it: 16-bit leaves were rounded
            found = self._rows(f(z)) - tried
            steps += 1
            lost = best.take(tried, found)
            if best.residual < tol:
                break
            new_x, new_g = tried, found
            if lost is not None:
                new_x, new_g = torch.where(lost, best.x, tried), torch.where(lost, best.g, found)
            target = new_x + updates.direction(new_x - x, new_g - g, new_g)
            if lost is not None:
                target = torch.where(lost, best.nearer(tried), target)
            x, g = new_x, new_g
        return Run(as_leaves(best.x, like), steps, best.residual)

    def _rows(self, leaves: Sequence[Tensor]) -> Tensor:
        return as_rows(leaves, self.batched, "Broyden")


class _Best:
    """The best state x of each row, by the norm of g = f(x) - x, and the residual of all."""

    def __init__(self, like: Sequence[Tensor], x: Tensor, g: Tensor) -> None:
        self.like, self.x, self.g = like, x, g
        self.norms = torch.linalg.vector_norm(g, dim=1)
        self._measure()

    def take(self, x: Tensor, g: Tensor) -> Tensor | None:
        """Consider another state. Returns the rows with Inf or NaN, [rows, 1]; None if no row."""
        norms = torch.linalg.vector_norm(g, dim=1)
        better = norms < self.norms
        if bool(better.all()):
            self.x, self.g, self.norms = x, g, norms
            self._measure()
            return None
        if bool(better.any()):
            self.x, self.g = (
                torch.where(better[:, None], new, old) for new, old in ((x, self.x), (g, self.g))
            )
            self.norms = torch.where(better, norms, self.norms)
            self._measure()
        finite = norms.isfinite()
        return None if bool(finite.all()) else ~finite[:, None]

    def nearer(self, lost: Tensor) -> Tensor:
        """Halfway from a non-finite row to the best; f of the best where that is not finite."""
        halfway = (lost + self.x) / 2
        return torch.where(halfway.isfinite().all(1, keepdim=True), halfway, self.x + self.g)

    def _measure(self) -> None:
        # x + g equals f(x) bit for bit once the two are near.
        z, value = as_leaves(self.x, self.like), as_leaves(self.x + self.g, self.like)
        self.residual = relative_residual(z, value)


class _Updates:
    """The last steps s, the changes y of g that they caused, and the inverse Jacobian implied.

    Starting from -beta, Broyden's updates by all pairs (s, y) give the inverse Jacobian

        H = -beta + U (triu(S^T S) - S^T U)^-1 (-beta S^T),    U = S + beta Y,

    where the triangle has the pairs in their order. Pairs may be scaled: here s has norm 1, so
    that the small system is well scaled. A new pair replaces the oldest.
    """

    def __init__(self, size: int, beta: float) -> None:
        self.size, self.beta, self.count = size, beta, 0
        self.s = self.u = self.ss = self.su = self.order = torch.empty(0)

    def direction(self, s: Tensor, y: Tensor, g: Tensor) -> Tensor:
        """Add the step s, which changed g by y; return the next step from g: -H g."""
        if self.count == 0:
            self._allocate(s)
        slot, used = self.count % self.size, min(self.count + 1, self.size)
        norm = torch.linalg.vector_norm(s, dim=1, keepdim=True)
        scale = torch.where(norm > 0, 1 / norm, 0.0)  # a row that did not move has no pair
        self.s[:, slot] = s * scale
        self.u[:, slot] = (s + self.beta * y) * scale
        self.order[slot] = self.count
        self.count += 1
        steps, changes = self.s[:, :used], self.u[:, :used]
        s, u = self.s[:, slot], self.u[:, slot]
        column = steps @ torch.stack([s, u, self.beta * g], 1).mT
        self.ss[:, :used, slot] = self.ss[:, slot, :used] = column[..., 0]
        self.su[:, slot, :used] = (changes @ s[..., None])[..., 0]
        self.su[:, :used, slot] = column[..., 1]
        weights = self._solve(column[..., 2:], used)
        return torch.baddbmm(self.beta * g[:, None], weights.mT, changes)[:, 0]

    def _solve(self, right: Tensor, used: int) -> Tensor:
        """The weights of U's columns, [rows, used, 1]; zeros in rows with a singular system."""
        ss, order = self.ss[:, :used, :used], self.order[:used]
        system = ss.masked_fill(order[:, None] > order, 0) - self.su[:, :used, :used]
        system.diagonal(dim1=1, dim2=2).add_(ss.diagonal(dim1=1, dim2=2) == 0)
        weights = torch.linalg.solve_ex(system, right)[0]
        return torch.where(weights.isfinite().all(1, keepdim=True), weights, 0.0)

    def _allocate(self, like: Tensor) -> None:
        rows, numbers = like.shape
        self.s, self.u = (like.new_empty(rows, self.size, numbers) for _ in range(2))
        self.ss, self.su = (like.new_empty(rows, self.size, self.size) for _ in range(2))
        self.order = torch.empty(self.size, dtype=torch.long, device=like.device)
