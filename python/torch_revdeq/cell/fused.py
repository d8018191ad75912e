"""The solve of a ``LinearCell`` under ``RevDEQ``: by one op for all steps, or by the solver."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

import revdeq_kernels as rk
from revdeq_kernels.ops.cell import choice as cell_choice
from revdeq_kernels.ops.cell.arguments import Numbers

from ..adjoints.problem import out_of_range
from ..compile.entry import not_compiled
from ..iteration.beta import BetaSchedule
from ..options.call import drawn
from ..options.reading import with_defaults
from ..runtime.cuda_graphs import capturing, check_capture
from ..runtime.deferred import ReconstructionError, deferred_checks, report_check
from ..runtime.transforms import inside_transform
from ..solution import Solution, Stats
from ..solver import solve
from ..state.digits import choose_frac_bits
from .linear import ACTS, LinearCell


@not_compiled
def solve_cell(
    cell: LinearCell,
    z0: Any,
    args: tuple[Any, ...],
    options: dict[str, Any],
    implementation: str | None,
) -> Solution:
    """``solve(cell, z0, *args, **options)``, by one op for all steps where one takes it.

    ValueError where an implementation was named that does not.
    """
    known = ("solver", *cell_choice.IMPLEMENTATIONS)
    if implementation is not None and implementation not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"implementation: expected one of {names}, got {implementation!r}")
    options = with_defaults(options)
    name, why = _route(cell, z0, args, options, implementation)
    if name != "solver":
        return _solve_in_one_op(cell, z0, args[0], options, name, f"{name}: {why}")
    if implementation not in (None, "solver"):
        raise ValueError(f"implementation: {implementation!r} cannot take this solve: {why}")
    solution = solve(cell, z0, *args, **options)
    solution.stats.route = f"solver: {why}"
    return solution


def _route(
    cell: LinearCell,
    z0: Any,
    args: tuple[Any, ...],
    options: dict[str, Any],
    implementation: str | None,
) -> tuple[str, str]:
    """What takes the solve, and why."""
    if implementation == "solver":
        return "solver", "it was named"
    name, why = implementation, "it was named"
    if name is None and rk.backends.chosen == "triton":
        name, why = "triton", "the backend was named"
    if name is None:
        w = _like_w(cell)
        name, why = cell_choice.fastest(w), "it is the fastest here"
        if name is None:
            return "solver", (
                f"no kernel that takes all steps was measured for {cell.features} features in "
                f"{w.dtype} on {w.device.type}; RevDEQ(..., implementation=...) names one"
            )
    reason = _unsuited(cell, z0, args, options) or cell_choice.why_not(name, _like_w(cell))
    return ("solver", reason) if reason else (name, why)


def _like_w(cell: LinearCell) -> Tensor:
    """What has W's dtype, device and features. W itself may be computed anew at every look."""
    return cell.b.detach()


_ONLY = {
    "y0": None,
    "check_every": 1,
    "process_group": None,
    "residual_mask": None,
    "check": True,
    "accumulate": "float32",
    "store_last": 0,
    "memory_budget": None,
    "save_at": (),
    "backward_steps": None,
    "has_aux": False,
    "pass_step": False,
    "kwargs": None,
}
"""Options of ``solve`` that one op takes at a single value."""

_FREE = ("adjoint", "aux", "beta", "max_steps", "tol", "per_sample", "state", "frac_bits", "rng")


def _unsuited(
    cell: LinearCell, z0: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> str | None:
    """Why one op cannot take the solve, if it cannot."""
    for option, value in options.items():
        if option not in (*_ONLY, *_FREE):
            return f"it knows no {option}"
        if option in _ONLY and not _is(value, _ONLY[option]):
            return f"it takes {option}={_ONLY[option]!r} alone"
    if options["adjoint"] not in ("auto", "reversible"):
        return "it takes adjoint='reversible' alone"
    if options["state"] not in ("auto", "exact", torch.float32):
        return f"it takes state='exact' or torch.float32, got {options['state']}"
    if not isinstance(options["beta"], float):
        return f"it takes one number for beta, got {type(options['beta']).__name__}"
    if inside_transform() or forward_ad._current_level >= 0:
        return "it has no part in the transforms of torch.func, nor in forward mode"
    if torch.is_autocast_enabled(_like_w(cell).device.type):
        return "it does not follow autocast"
    return (
        _unsuited_halting(z0, options["tol"], options["per_sample"])
        or _unsuited_cell(cell)
        or _unsuited_tensors(cell, z0, args)
    )


def _is(value: Any, only: Any) -> bool:
    """Whether an option has a value, or one that stands for nothing as well: tol=0, save_at=[]."""
    if only is None or only == ():
        return value is None or (isinstance(value, (int, float, list, tuple)) and not value)
    return type(value) is type(only) and value == only


def _unsuited_halting(z0: Any, tol: float | None, per_sample: int) -> str | None:
    """A row can halt for itself; there is no halting of all rows together."""
    if not tol and not per_sample:
        return None
    if not tol or tol == math.inf or not per_sample:
        return f"it takes tol with per_sample=True, or neither, got tol={tol}, {per_sample=}"
    if isinstance(z0, Tensor) and z0.dim() != per_sample + 1:
        return (
            f"a sample is a row to it, got z0 with {z0.dim()} dimensions and {per_sample=}; "
            f"per_sample={max(1, z0.dim() - 1)} halts every row"
        )
    return None


def _unsuited_cell(cell: LinearCell) -> str | None:
    """A call of the cell must be the formula and nothing besides."""
    if type(cell).forward is not LinearCell.forward:
        return f"{type(cell).__name__} has a forward of its own"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(cell, name) or getattr(torch_module, f"_global{name}") for name in hooks):
        return "the cell has hooks, which it would not call"
    return None


def _unsuited_tensors(cell: LinearCell, z0: Any, args: tuple[Any, ...]) -> str | None:
    w, plain = _like_w(cell), (Tensor, nn.Parameter)
    if len(args) != 1 or not all(type(t) in plain for t in (z0, *args, *cell.parameters())):
        return "it takes one tensor x and a tensor z0, and parameters, all of them plain"
    x = args[0]
    if w.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes parameters in float32, bfloat16 or float16, got {w.dtype}"
    if x.dtype != w.dtype or z0.dtype not in (w.dtype, torch.float32):
        return f"it takes x and z0 in {w.dtype}, the dtype of W, got {x.dtype} and {z0.dtype}"
    if z0.shape != (*x.shape[:-1], cell.features):
        return f"it takes z0 of shape {(*x.shape[:-1], cell.features)}, got {tuple(z0.shape)}"
    if not x.device == z0.device == w.device:
        return f"it takes tensors on one device, got {x.device}, {z0.device} and {w.device}"
    return None


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
    w = cell.W  # read once: a parametrization computes it
    u, start = (t.reshape(-1, cell.features) for t in (cell.of_input(x), z0.float()))
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
    y, z = _OneOp.apply(u, w, start, numbers, name, stats)
    if stats._sample_steps is not None:
        stats._sample_steps = stats._sample_steps.view(z0.shape[:-1])
    z, y = (t.reshape(z0.shape).to(z0.dtype) for t in (z, y))
    return Solution(z, y, stats)


def _frac_bits(act: str, u: Tensor, w: Tensor, start: Tensor, shape: torch.Size) -> int:
    """As ``solve`` chooses them. tanh needs no evaluation of f: it does not exceed 1."""
    seen = {"z0": [start.view(shape)]}
    if act != "tanh":
        seen["f(z0)"] = [ACTS[act](F.linear(start.to(w.dtype), w) + u).view(shape)]
    return choose_frac_bits([torch.float32], seen)


class _OneOp(torch.autograd.Function):
    """The solve as a node of autograd's graph, with the checks of ``solve``."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        w: Tensor,
        z0: Tensor,
        numbers: Numbers,
        implementation: str,
        stats: Stats,
    ) -> tuple[Tensor, Tensor]:
        options = {**numbers._asdict(), "implementation": implementation}
        out = rk.linear_cell_forward(u, w, z0, **options)
        y, z = out.y, out.z
        if numbers.exact:
            stats.state_bytes += out.digits.numel()
            bits = numbers.frac_bits
            pending = report_check(out.flag, lambda: out_of_range(bits), (y, z))
            stats._pending += [] if pending is None else [pending]
        if numbers.halting:
            stats._sample_steps = out.taken.long()
            some = out.taken.numel() > 0  # of no samples solve says that they arrived after a step
            stats._steps = out.taken.max() if some else 1
            stats._residual = out.residual.max() if some else out.residual.new_zeros(())
        ctx.exact, ctx.options, ctx.stats = numbers.exact, options, stats
        states = (out.fixed,) if ctx.exact else (y, z)
        ctx.save_for_backward(u, w, z0, out.digits, out.taken, *states)
        ctx.set_materialize_grads(False)
        return y, z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        stats = ctx.stats
        if torch.is_grad_enabled():
            raise RuntimeError(
                "LinearCell: expected to be differentiated once where one op takes all steps, got "
                "a derivative of the derivative; choose RevDEQ(..., implementation='solver', "
                "state=torch.float32)"
            )
        u, w, z0, digits, taken, *states = ctx.saved_tensors
        y, z = states[0].unbind() if ctx.exact else states
        grad_y, grad_z = (torch.zeros_like(z0) if g is None else g for g in grads)
        ends, options = (grad_y, grad_z, y, z, digits), {"taken": taken, **ctx.options}
        out = rk.linear_cell_backward(*ends, u, w, z0, **options)
        distance = out.distance
        stats._reconstruction_error = distance
        pending = report_check(out.lost, lambda: _not_back(float(distance)), ())  # NaN already
        stats._pending += [] if pending is None else [pending]
        return out.grad_u, out.grad_w.to(w.dtype), out.grad_z0, None, None, None


def _not_back(distance: float) -> ReconstructionError:
    causes = (
        "W, U, b or an input was changed since the forward pass, through .data; or, with "
        "state=torch.float32, its precision is used up (use state='exact', fewer steps, or a beta "
        "nearer to 0)"
    )
    if distance == math.inf:
        causes = f"the state became NaN or infinite, if z is (look at what f reads); {causes}"
    return ReconstructionError(
        f"LinearCell: expected the way back to end at its start, got a distance of {distance:.3g} "
        f"from it; the gradient would be wrong. Probable causes: {causes}"
    )
