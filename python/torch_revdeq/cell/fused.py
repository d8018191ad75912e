"""Solving a ``LinearCell`` under ``RevDEQ``: with one op for all steps, or with the solver."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

import revdeq_kernels as rk
from revdeq_kernels.ops.cell import choice as cell_choice
from revdeq_kernels.ops.cell.arguments import Ends, Inputs, Numbers, Solved
from revdeq_kernels.ops.cell.linear_cell import run_backward, run_forward

from ..adjoints.problem import out_of_range
from ..compile.entry import not_compiled
from ..iteration.beta import BetaSchedule
from ..options.call import drawn
from ..options.reading import with_defaults
from ..runtime.cuda_graphs import capturing, check_capture
from ..runtime.deferred import ReconstructionError, deferred_checks, report_check
from ..runtime.magnitude import magnitude
from ..runtime.transforms import inside_transform, is_batched
from ..solution import Solution, Stats
from ..solver import solve
from ..state.digits import choose_frac_bits
from .linear import ACTS, LinearCell
from .suited import check_shapes, like_w, why_unsuited


@not_compiled
def solve_cell(
    cell: LinearCell,
    z0: Any,
    args: tuple[Any, ...],
    options: dict[str, Any],
    implementation: str | None,
) -> Solution:
    """``solve(cell, z0, *args, **options)``, with one op for all steps where possible.

    ValueError if an implementation was named that cannot run this solve.
    """
    known = ("solver", *cell_choice.IMPLEMENTATIONS)
    if implementation is not None and implementation not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"implementation: expected one of {names}, got {implementation!r}")
    options = with_defaults(options)
    check_shapes(cell, z0, args)
    name, why = _route(cell, z0, args, options, implementation)
    if name != "solver":
        return _solve_in_one_op(cell, z0, args[0], options, name, f"{name}: {why}")
    if implementation not in (None, "solver"):
        raise ValueError(f"implementation: {implementation!r} cannot take this solve: {why}")
    solution = solve(cell, z0, *args, **options)
    if not options["compile"]:  # otherwise the solver's own route says more
        solution.stats.route = f"solver: {why}"
    return solution


def _route(
    cell: LinearCell,
    z0: Any,
    args: tuple[Any, ...],
    options: dict[str, Any],
    implementation: str | None,
) -> tuple[str, str]:
    """The implementation that runs the solve, and why."""
    if implementation == "solver":
        return "solver", "it was named"
    w, name, why = like_w(cell), implementation, "it was named"
    if name is None and rk.backends.chosen == "triton":
        name, why = "triton", "the backend was named"
    if name is None:
        name, why = cell_choice.fastest(w, cell.act), "it is the fastest here"
        if name is None:
            return "solver", (
                f"no kernel for all steps is known to be faster for {cell.features} features in "
                f"{w.dtype} on {w.device.type}; choose one with RevDEQ(..., implementation=...)"
            )
    reason = why_unsuited(cell, z0, args, options) or cell_choice.why_not(name, w, cell.act)
    return ("solver", reason) if reason else (name, why)


def _solve_in_one_op(
    cell: LinearCell, z0: Tensor, x: Tensor, options: dict[str, Any], name: str, route: str
) -> Solution:
    exact, bits = options["state"] != torch.float32, options["frac_bits"]
    if capturing(z0.device):
        fixed = None if bits == "auto" else bits
        rng, depth = options["rng"], options["max_steps"]
        check_capture(None, fixed, options["beta"], rng, depth, exact=exact)
    else:
        deferred_checks.poll()
    schedule = BetaSchedule(options["beta"], drawn(options["max_steps"]), exact=exact)
    w, of_x = cell.W, cell.U  # read once: a parametrization computes them
    u = F.linear(x, of_x, cell.b)  # its derivative reads x and U; `_unsuited_cell` ensures that
    u, start = (t.reshape(-1, cell.features) for t in (u, z0.float()))
    if bits == "auto":
        seen = u.detach(), w.detach(), start.detach()
        bits = _frac_bits(cell.act, *seen, z0.shape) if exact else 0
    state = "exact" if exact else "float32"
    tol = options["tol"] if options["per_sample"] else 0.0
    numbers = Numbers(schedule.numbers[0], schedule.max_steps, cell.act, state, bits, tol)
    stats = Stats(
        schedule.max_steps,
        state=state,
        adjoint="reversible",
        state_bytes=8 * start.numel(),
        frac_bits=bits if exact else None,
        tol=options["tol"],
        route=route,
    )
    inputs = Inputs(u, w, start)
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        read = [t.detach() for t, other in ((x, of_x), (of_x, x)) if other.requires_grad]
        if is_parametrized(cell):
            read += [p.detach() for p in cast("nn.Module", cell.parametrizations).parameters()]
        y, z = _OneOp.apply(*inputs, numbers, name, stats, *read)
    else:
        y, z, *_ = _forward(inputs, numbers, name, stats, keeps=False)
    if stats._sample_steps is not None:
        stats._sample_steps = stats._sample_steps.view(z0.shape[:-1])
    z, y = (t.reshape(z0.shape).to(z0.dtype) for t in (z, y))
    return Solution(z, y, stats)


def _frac_bits(act: str, u: Tensor, w: Tensor, start: Tensor, shape: torch.Size) -> int:
    """As ``solve`` chooses them, without evaluating f where a bound on f is enough."""
    seen = {"z0": [start.view(shape)]}
    if act != "tanh" and not _is_small(u, w, start):  # tanh does not exceed 1
        seen["f(z0)"] = [ACTS[act](F.linear(start.to(w.dtype), w) + u).view(shape)]
    return choose_frac_bits([torch.float32], seen)


SMALL = 8.0
"""Below this bound an exact state gets all the fractional bits that suit float32. The limit is 32;
8 leaves room for the rounding errors of a 16-bit product."""


def _is_small(u: Tensor, w: Tensor, start: Tensor) -> bool:
    """Whether f(z0) is below SMALL, as abs(act(x)) <= abs(x) <= abs(u) + d abs(w z0).

    False if a number is not finite, or off the CPU, where the host would have to wait.
    """
    if u.device.type != "cpu" or u.numel() == 0:
        return False
    of_u, of_w, of_start = (float(magnitude(t)) for t in (u, w, start))
    return of_u + len(w) * of_w * of_start < SMALL


def _forward(
    inputs: Inputs, numbers: Numbers, implementation: str, stats: Stats, *, keeps: bool = True
) -> Solved:
    """All steps, with the checks of ``solve``; fills in `stats`."""
    out = run_forward(implementation, inputs, numbers, keeps=keeps)
    if numbers.exact:
        stats.state_bytes += out.digits.numel()
        bits = numbers.frac_bits
        pending = report_check(out.flag, lambda: out_of_range(bits), (out.y, out.z))
        stats._pending += [] if pending is None else [pending]
    if numbers.halting:
        stats._sample_steps = out.taken.long()
        some = out.taken.numel() > 0  # without samples, solve stops after one step
        stats._steps = out.taken.max() if some else 1
        stats._residual = out.residual.max() if some else out.residual.new_zeros(())
    return out


def _sums_of_bits(t: Tensor) -> Tensor:
    """A checksum of each row's bits: equal sums mean equal rows, except by rare chance."""
    if t.element_size() not in _BITS:  # complex128, or a byte: one sum for all rows
        return t.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).sum()
    bits = t.resolve_neg().view(_BITS[t.element_size()])
    return bits.sum(-1, dtype=torch.int32 if t.element_size() == 2 else bits.dtype)  # wraps: fast


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class _OneOp(torch.autograd.Function):
    """The solve as a node of autograd's graph.

    `read` are the tensors that the derivatives of u and W read after this node. The reconstruction
    starts from u and W and would not notice that they changed, so their bits are compared.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        w: Tensor,
        z0: Tensor,
        numbers: Numbers,
        implementation: str,
        stats: Stats,
        *read: Tensor,
    ) -> tuple[Tensor, Tensor]:
        out = _forward(Inputs(u, w, z0), numbers, implementation, stats)
        ctx.numbers, ctx.implementation, ctx.stats = numbers, implementation, stats
        states = (out.fixed,) if numbers.exact else (out.y, out.z)
        # The sums are saved too, so that a checkpoint recomputes both.
        sums = map(_sums_of_bits, read)
        ctx.save_for_backward(u, w, z0, out.digits, out.taken, *read, *sums, *states)
        ctx.set_materialize_grads(False)
        return out.y, out.z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        stats = ctx.stats
        if torch.is_grad_enabled():
            raise RuntimeError(
                "LinearCell: expected to be differentiated once where one op takes all steps, got "
                "a second derivative; choose RevDEQ(..., implementation='solver', "
                "state=torch.float32)"
            )
        if inside_transform() or is_batched(grads):
            raise RuntimeError(
                "LinearCell: expected one gradient at a time where one op takes all steps, got "
                "batched gradients (vectorize=True, is_grads_batched=True); choose "
                "RevDEQ(..., adjoint='hooks') or vectorize=False"
            )
        u, w, z0, digits, taken, *rest = ctx.saved_tensors
        n = len(ctx.needs_input_grad) - 6
        read, sums, states = rest[:n], rest[n : 2 * n], rest[2 * n :]
        y, z = states[0].unbind() if ctx.numbers.exact else states
        grad_y, grad_z = (torch.zeros_like(z0) if g is None else g for g in grads)
        ends = Ends(grad_y, grad_z, y, z, digits, taken)
        wants_z0 = ctx.needs_input_grad[2]
        inputs = Inputs(u, w, z0)
        out = run_backward(ctx.implementation, ends, inputs, ctx.numbers, wants_z0=wants_z0)
        distance = out.distance
        stats._reconstruction_error = distance
        pending = report_check(out.lost, lambda: _not_back(float(distance)), ())  # NaN already
        stats._pending += [] if pending is None else [pending]
        for t, of_t in zip(read, sums, strict=True):
            changed = (_sums_of_bits(t) != of_t).any()
            pending = report_check(changed, _other_input, (out.grad_u,))
            stats._pending += [] if pending is None else [pending]
        grad_z0 = out.grad_z0 if wants_z0 else None
        return out.grad_u, out.grad_w.to(w.dtype), grad_z0, *(None,) * (3 + n)


def _not_back(distance: float) -> ReconstructionError:
    causes = (
        "W or z0 was changed since the forward pass, through .data; or, with "
        "state=torch.float32, its precision limit (use state='exact', fewer steps, or a beta "
        "closer to 0)"
    )
    if distance == math.inf:
        causes = f"the state became NaN or infinite, if z is (check what f reads); {causes}"
    return ReconstructionError(
        "LinearCell: reversing the iteration did not recover the initial state (relative error "
        f"{distance:.3g}), so the gradient would be wrong. Probable causes: {causes}"
    )


def _other_input() -> ReconstructionError:
    return ReconstructionError(
        "LinearCell: expected x, U and the parametrizations to be unchanged since the forward "
        "pass, got different values in one of them, so the gradient would be wrong. Probable "
        "cause: it was changed through .data or through memory that it shares; call backward() "
        "first, or pass the layer a clone"
    )
