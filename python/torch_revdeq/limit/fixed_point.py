"""``fixed_point``: find z = f(z) and its gradient, for comparison with ``solve``.

Forward: plain or relaxed iteration, Anderson's or Broyden's method, or a user-defined solver.
Backward: implicit differentiation or a phantom gradient. Neither gradient is exact for what was
computed: the implicit one assumes that the fixed point was reached, the phantom one differentiates
only a few steps. ``solve`` needs no such assumption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..adjoints.vjp import as_read, engine_vjp, keeps_graph
from ..evaluation.adjoint import Adjoint
from ..evaluation.boundary import Entrance, guard, unguarded
from ..evaluation.called import check_callable
from ..evaluation.closure import check_kept, leaves_below, now
from ..evaluation.effects.modules import check_modules
from ..evaluation.flat_function import FlatFunction, flatten
from ..evaluation.replay import Evaluation
from ..iteration import residual as measured
from ..options.values import shown
from ..runtime.transforms import is_batched
from .checks import (
    check_counts,
    check_residual,
    check_solver,
    check_tolerances,
    check_trace,
    run_checked,
    warn_above,
)
from .names import refusing_other_names
from .result import FixedPoint, FixedPointStats
from .solvers import Anderson, FixedPointSolver, Map, Relaxed, Run, number

FixedPointAdjoint: TypeAlias = Literal["implicit", "phantom"]


class Implicit(Adjoint):
    """Evaluates f once more at the fixed point; its product with the Jacobian is iterated."""

    name = "implicit"


class Phantom(Adjoint):
    """Autograd's own graph of the last steps."""

    name, evaluates_once, takes_sharded = "phantom", True, True


ADJOINTS = {row.name: row for row in (Implicit(), Phantom())}


@refusing_other_names
def fixed_point(
    f: Callable[..., Any],
    z0: Any,
    *args: Any,
    solver: FixedPointSolver | None = None,
    tol: float = 1e-5,
    max_steps: int = 50,
    adjoint: FixedPointAdjoint = "implicit",
    adjoint_solver: FixedPointSolver | None = None,
    adjoint_tol: float | None = None,
    adjoint_max_steps: int | None = None,
    phantom_steps: int = 5,
    phantom_beta: float = 0.8,
    trace: bool = False,
) -> FixedPoint:
    """Find the fixed point z = f(z, *args), and differentiate it rather than the steps.

    Args:
        f: as in ``solve``. Random numbers are drawn once and reused in every evaluation.
        z0: as in ``solve``. It gets no gradient, as the fixed point does not depend on it.
        args: as in ``solve``. They and everything else that f reads get gradients.
        solver: ``Picard()``, ``Relaxed(beta)``, ``Anderson(...)`` (the default), ``Broyden(...)``,
            or your own: see ``FixedPointSolver``. What it returns is checked; if gradients are
            needed, so is the residual it reports, by the evaluation of f at the fixed point.
        tol: stop when the relative residual, the largest over the leaves, falls below this. The
            solvers here also stop once nothing in z and f(z) is finite: the result is "diverged".
        max_steps: maximum number of evaluations of f.
        adjoint: "implicit": the gradient of the fixed point, from u = g + u J, solved iteratively;
            evaluates f twice at the fixed point. "phantom": autograd through `phantom_steps`
            relaxed steps from the fixed point.
        adjoint_solver: solver of the implicit adjoint; `solver` by default. One of your own costs
            one more vector-Jacobian product, which checks its residual.
        adjoint_tol: tol by default.
        adjoint_max_steps: max_steps by default.
        phantom_steps: number of phantom steps.
        phantom_beta: relaxation factor of the phantom steps, in (0, 1].
        trace: keep the residual of every evaluation of the forward iteration, in
            ``FixedPointStats.residuals``. Results are bitwise unchanged.

    Returns:
        A ``FixedPoint``. A UserWarning tells you if an iteration ended above its tolerance: its
        gradient is then not that of a fixed point.

    Raises: TypeError or ValueError that names the argument; ValueError if your own solver reports a
    residual below its tolerance and f does not have that residual at the z it returned.

    Memory: the solver's window of states, and one graph of f (implicit) or `phantom_steps` graphs.

    Source: Bai, Kolter, Koltun, arXiv 1909.01377 (implicit); Geng et al., arXiv 2111.05177
    (phantom); Walker and Ni, SIAM J. Numer. Anal. 49, 2011 (Anderson).
    """
    check_callable(f, "fixed_point(f, z0, *args)")
    solver = Anderson() if solver is None else solver
    adjoint_solver = solver if adjoint_solver is None else adjoint_solver
    check_solver("solver", solver)
    check_solver("adjoint_solver", adjoint_solver)
    backward_tol = tol if adjoint_tol is None else adjoint_tol
    backward_steps = max_steps if adjoint_max_steps is None else adjoint_max_steps
    check_tolerances({"tol": tol, "adjoint_tol": backward_tol})
    if adjoint not in ADJOINTS:
        raise ValueError(
            f"adjoint: expected 'implicit' or 'phantom', got {adjoint!r}; the adjoints of the "
            "steps are options of solve"
        )
    if not 0 < number(phantom_beta) <= 1:
        raise ValueError(f"phantom_beta: expected a number in (0, 1], got {shown(phantom_beta)}")
    counts = {"max_steps": max_steps, "adjoint_max_steps": backward_steps}
    check_counts({**counts, "phantom_steps": phantom_steps})
    check_trace(trace)
    leaves, structure = flatten("z0", z0)
    mapping = FlatFunction(f, leaves, structure)
    tensors = mapping.take_args(args)
    evaluation = Evaluation(mapping, leaves[0].device, "shared")
    grad = torch.is_grad_enabled()
    if grad:
        check_modules(evaluation.modules, ADJOINTS[adjoint])
    calls = 0
    residuals: list[Tensor] = []

    def evaluate(state: Sequence[Tensor]) -> list[Tensor]:
        nonlocal calls
        out = evaluation(calls, state, tensors)
        calls += 1
        return [value.to(leaf.dtype) for value, leaf in zip(out, leaves, strict=True)]

    def iterated(state: Sequence[Tensor]) -> list[Tensor]:
        """f without its graph; the first time with one, to detect tensors that f keeps."""
        if calls > 0 or not grad:
            return evaluate(state)
        with torch.enable_grad():
            read = [leaf.detach().requires_grad_() for leaf in state]
            out = evaluate(read)
        guard(read)
        return [value.detach() for value in out]

    def watched(state: Sequence[Tensor]) -> list[Tensor]:
        """The same, and keeps the residual, on the device."""
        value = iterated(state)
        residuals.append(measured.relative_residual([z.contiguous() for z in state], value))
        return value

    start, checked = now(), False

    def differentiated(state: Sequence[Tensor]) -> list[Tensor]:
        """f with its graph, which must not lead into the graph of the iteration."""
        nonlocal checked
        out = evaluate(state)
        check_kept(out, start, end, tensors)
        if not checked:
            check_residual("solver", solver, run, tol, lambda: out)
            checked = True
        return out

    with evaluation.forward(replayed=False):
        with torch.no_grad():
            start_at = [leaf.detach() for leaf in leaves]
            step = watched if trace else iterated
            run = run_checked("solver", solver, step, start_at, tol, max_steps)
        end = now()
        stats = FixedPointStats(run.steps, run.steps, run.residual, run.residual < tol)
        stats.residuals = torch.stack(residuals) if residuals else None
        if not stats.converged:
            warn_above("fixed_point", run, tol, "max_steps", level=4)  # the user's line
        z = run.z
        if grad and adjoint == "phantom":
            relaxed = Relaxed(phantom_beta)
            for _ in range(phantom_steps):
                z = relaxed.step(z, differentiated(z))
        elif grad:
            backward = _Backward(
                adjoint_solver,
                backward_tol,
                backward_steps,
                stats,
            )
            z = _implicit(differentiated, z, tensors, backward)
    stats.nfe = calls
    return FixedPoint(mapping.unflatten(z), stats)


@dataclass
class _Backward:
    """How the adjoint equation is solved."""

    solver: FixedPointSolver
    tol: float
    max_steps: int
    stats: FixedPointStats

    def run(self, product: Map, grads: list[Tensor]) -> Run:
        """Solve u = g + u J, starting from g."""
        option = "adjoint_solver"
        run = run_checked(option, self.solver, product, grads, self.tol, self.max_steps)
        check_residual(option, self.solver, run, self.tol, lambda: product(run.z))
        return run


def _implicit(
    evaluate: Callable[[Sequence[Tensor]], list[Tensor]],
    z: list[Tensor],
    given: Sequence[Tensor],
    how: _Backward,
) -> list[Tensor]:
    """f at the fixed point; gradients flow through its graph to what f reads.

    The evaluation for the products comes last, so that any tensor f leaves behind belongs to it:
    it accepts no gradient except the adjoint's.
    """
    value = evaluate([leaf.detach() for leaf in z])
    around = _Around(evaluate, z, [*given, *leaves_below(value)])
    if not any(v.requires_grad for v in value):
        return [v.detach() for v in value]
    return list(_Implicit.apply(how, around, *value))


class _Around:
    """An evaluation of f at the fixed point, used only for products with the adjoint."""

    def __init__(
        self,
        evaluate: Callable[[Sequence[Tensor]], list[Tensor]],
        z: list[Tensor],
        origin: Sequence[Tensor],
    ) -> None:
        self.entrance = Entrance()
        self.entrance.lead_from(origin)
        self.state = self.entrance.enter(z)
        with self.entrance.opened():
            self.out = evaluate(as_read(self.state))
        self.roots = [i for i, value in enumerate(self.out) if value.requires_grad]
        guard(self.state)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Accept the adjoint's gradients inside."""
        unguarded(self.state)
        try:
            with self.entrance.opened():
                yield
        finally:
            guard(self.state)

    def product(self, u: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """u J, None where f does not depend on a leaf."""
        out, seeds = [self.out[i] for i in self.roots], [u[i] for i in self.roots]
        return engine_vjp(out, self.state, seeds, keep=True)


class _Implicit(torch.autograd.Function):
    """The identity at the fixed point; its gradient is u = g (I - J)^-1 instead of g."""

    @staticmethod
    def forward(ctx: Any, how: _Backward, around: _Around, *value: Tensor) -> tuple[Tensor, ...]:
        ctx.how, ctx.around = how, around
        return tuple(v.view_as(v) for v in value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "fixed_point: expected one derivative of an implicit gradient, got "
                "create_graph=True; choose adjoint='phantom', or solve() with a float state"
            )
        if is_batched(grads):
            raise RuntimeError(
                "fixed_point: expected one gradient at a time, got batched gradients "
                "(vectorize=True, is_grads_batched=True); choose adjoint='phantom', or "
                "vectorize=False"
            )
        if ctx.around is None:
            raise RuntimeError(
                "fixed_point: expected one backward pass, got it a second time; pass "
                "retain_graph=True the first time"
            )
        how: _Backward = ctx.how
        around: _Around = ctx.around

        def product(u: Sequence[Tensor]) -> list[Tensor]:
            rows = zip(grads, around.product(u), strict=True)
            return [g if part is None else g + part for g, part in rows]

        with around.open():
            run = how.run(product, list(grads))
        how.stats.adjoint_steps, how.stats.adjoint_residual = run.steps, run.residual
        if not run.residual < how.tol:
            warn_above("fixed_point: the adjoint", run, how.tol, "adjoint_max_steps")
        if not keeps_graph():
            ctx.around = None
        return (None, None, *run.z)
