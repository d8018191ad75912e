"""Check an equilibrium cell whose rows halt: each row equals a solve with that number of steps."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from revdeq_kernels.ops.cell.arguments import Gradients, Solved
from tests.cell.linear_cells import Cell, Outcome, of_rows
from tests.cell.tolerances import Bounded, Sums, bounded, residuals


def assert_rows_halt_when_they_should(cell: Cell, out: Solved, sums: Sums) -> None:
    """Check the steps of each row by its float64 residuals, up to rounding errors."""
    assert out.taken.dtype == torch.int32 and out.taken.shape == out.residual.shape
    found = residuals(replace(cell, tol=0.0), sums)
    last = out.taken.long() - 1
    assert int(last.min()) >= 0 and int(last.max()) < cell.steps
    value, error = (torch.stack(part) for part in zip(*found, strict=True))
    before = torch.arange(cell.steps)[:, None] < last
    assert bool(((value + error >= cell.tol) | ~before).all()), "a row moved on below tol"
    at_end = Bounded(*(part.gather(0, last[None])[0] for part in (value, error)))
    early = out.taken < cell.steps
    assert bool((at_end.value - at_end.error < cell.tol)[early].all()), "a row halted above tol"
    assert bool(((out.residual - at_end.value).abs() <= 1.01 * at_end.error).all())
    assert bool((out.residual < cell.tol)[early].all())


def by_steps(cell: Cell, taken: Tensor) -> list[tuple[Tensor, Cell]]:
    """For each number of steps: the rows that took it, and a cell of these rows that takes it."""
    found = []
    for steps in taken.unique().tolist():
        rows = (taken == steps).nonzero().flatten()
        found.append((rows, replace(of_rows(cell, rows), steps=int(steps), tol=0.0)))
    return found


def assert_rows_are_those_of_fewer_steps(
    cell: Cell, out: Solved, back: Gradients, sums: Sums
) -> None:
    """Check each row against the bounds for its steps, and the gradient of W against their sum."""
    rows_of_all, steps_of_all = len(cell.z0), int(out.taken.max())
    assert back.distance.item() == 0.0 or cell.state != "exact"
    assert back.lost.item() == 0
    got = Outcome(out.y, out.z, *back[:3])
    value, error = torch.zeros_like(cell.w).double(), torch.zeros_like(cell.w).double()
    for rows, part in by_steps(cell, out.taken):
        # Joined, the gradient of W is a sum over the steps of all rows.
        terms = rows_of_all * steps_of_all // part.steps + 1 if sums.joined else None
        values, errors = bounded(part, sums, terms)
        for name in ("y", "z", "grad_u", "grad_z0"):
            want, most = getattr(values, name), getattr(errors, name)
            assert most.norm() < 0.2 * want.norm(), f"{name}: the bound says nothing"
            far = (getattr(got, name)[rows].double() - want).abs() - most
            assert far.max() <= 0, f"{name} is {float(far.max()):.3g} beyond its bound"
        value, error = value + values.grad_w, error + errors.grad_w
    assert error.norm() < 0.2 * value.norm(), "grad_w: the bound says nothing"
    assert bool(((got.grad_w.double() - value).abs() <= error).all())
