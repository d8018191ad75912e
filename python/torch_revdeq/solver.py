"""``solve``: iterate f to its equilibrium, with the exact gradient of the steps taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from .adjoints.problem import Problem
from .adjoints.registry import ADJOINTS
from .compile.entry import for_compilers
from .evaluation.adjoint import Adjoint
from .evaluation.auxiliary import Reduction
from .evaluation.called import check_callable
from .evaluation.effects.modules import check_modules
from .evaluation.flat_function import FlatFunction, flatten
from .evaluation.outside import computed_outside
from .evaluation.replay import Evaluation
from .evaluation.rng import Rng
from .iteration.beta import Beta, BetaSchedule
from .iteration.halting import Halting
from .iteration.stopping import Stopping, StoppingRule
from .iteration.watching import OnStep
from .options.call import (
    adjoint_of_computed,
    chosen_adjoint,
    drawn,
    format_of,
    fractional_bits,
    masks,
    second_start,
    watch_of,
)
from .options.reading import adjoint_of, read_options, steps_to_save
from .options.table import Accumulate, AdjointName
from .runtime.cuda_graphs import capturing, check_capture
from .runtime.deferred import deferred_checks
from .solution import Solution
from .state.formats import State


@for_compilers
def solve(
    f: Callable[..., Any],
    z0: Any,
    *args: Any,
    y0: Any = None,
    beta: Beta = 0.5,
    max_steps: int | Callable[[], int] = 8,
    tol: float | StoppingRule | None = None,
    check_every: int = 1,
    per_sample: bool | int = False,
    process_group: Any = None,
    residual_mask: Any = None,
    state: State = "auto",
    frac_bits: int | Literal["auto"] = "auto",
    adjoint: AdjointName | Adjoint = "auto",
    rng: Rng = "auto",
    check: bool | float = True,
    accumulate: Accumulate = "float32",
    store_last: int | Literal["auto"] = 0,
    memory_budget: int | None = None,
    save_at: Sequence[int] = (),
    backward_steps: int | None = None,
    has_aux: bool = False,
    aux: Reduction = "sum",
    pass_step: bool = False,
    compile: bool | Literal["auto"] = False,
    trace: bool = False,
    on_step: OnStep | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Solution:
    """Iterate f to its equilibrium z = f(z, *args) with a reversible solver; differentiable.

        y <- (1 - beta) y + beta f(z, *args)
        z <- (1 - beta) z + beta f(y, *args)         from y = y0, z = z0

    Both lines are one step, each line a half step. The gradient is that of the steps taken, with
    respect to z0, y0, beta, the tensors in `args`, and every other leaf that f reads (parameters,
    tensors it closes over). It is not the gradient of the fixed point; the two converge to each
    other as the steps converge.

    Args:
        f: any callable, called as ``f(z, *args)``; returns the structure and shapes of z. Each step
            evaluates f twice, and twice more in the backward pass. f must not modify z in place and
            must be deterministic given z, args and the RNG state.
        z0: the initial state: a floating-point tensor or a pytree of them, on one device.
        args: passed to f; tensors in them, also nested, receive gradients.
        y0: the initial y, with z0's structure and shapes; z0 itself by default.
        beta: relaxation factor, in (0, 2) and not 1. A number; a sequence with one per step; a
            function of the step; or a tensor, which may require grad: one element, or with a float
            state of a single leaf one per channel (see ``revdeq_kernels.update_``).
        max_steps: number of steps, or a function that returns it, called once per solve (for a
            random depth).
        tol: stop when the relative residual norm(y - f(y)) / (1e-5 + norm(f(y))), the largest over
            the leaves, falls below this. None or 0: run max_steps. On a GPU the solve stops one
            check later than on a CPU, so that the device never idles. A solve with a tol also stops
            once nothing in y and f(y) is finite, with ``Stats.result`` "diverged" (not with
            per_sample or a process_group, nor with a ``StoppingRule``, which measures another
            residual). With dropout in training mode f is another function in every evaluation, and
            the residual stays at its noise: use rng="shared", or leave tol out.
        check_every: number of steps between checks of the residual.
        per_sample: apply tol to each sample, an index of dimension 0 of all leaves, separately. An
            integer d: a sample is an index of the first d dimensions; with 2 each token of [batch,
            length, features] halts on its own. Once a check finds a sample below tol, its state
            stays constant from the next step on, and its gradient is that of the steps it took. The
            solve ends when all samples have halted; f is evaluated for all of them until then.
        process_group: a torch.distributed group whose ranks stop together, by the largest residual
            among them. Needed with a tol if f communicates.
        residual_mask: positions that count in the residual: a bool tensor with the shape of leading
            dimensions of every leaf, such as [batch, length] for padded tokens, or a pytree of such
            tensors like z0. Values where it is False, even NaN, are left out of the residual, also
            of a sample's. The mask does not change the gradient.
        state: number format of y and z. "exact": fixed point, in which every step is reversed bit
            for bit; takes 8 bytes per element of z0, plus the remainder bits that each half step
            rounds away (the "digits": 1/8 byte per element at beta 0.5, 1/4 at 0.75, 1/3 at 0.8).
            torch.float32, float64, bfloat16 or float16, or their names, as "float32":
            reconstruction amplifies rounding errors by 1/abs(1 - beta) in every half step. "auto":
            exact, or float64 if z0 has float64 leaves, whose precision fixed point does not hold.
        frac_bits: fractional bits of an exact state: its resolution is `2**-frac_bits`, its
            range `2**(30 - frac_bits)`. "auto": 20 for f in float32 and 16 for less, or fewer if
            z0 or f(z0) is large; this reads the device once. An integer reads nothing.
        adjoint: how gradients are computed. "reversible" reconstructs the iterates in the backward
            pass; only the digits grow with the number of steps. "backprop" stores all activations,
            as a plain loop does. "checkpoint" stores the states and recomputes the activations.
            "hooks" is reversible inside autograd's own graph: for an f that is sharded by FSDP2 or
            closes over non-leaf tensors. "functional" is reversible as one function of tensors, for
            torch.func and graph compilers: float32 or float64 state, numbers as beta, no tol.
            "auto": "hooks" if f is sharded by FSDP2, or reads a tensor that was computed outside f
            and not passed to it (found by one extra evaluation of f if f holds such a tensor),
            otherwise "reversible"; ``Stats.adjoint`` says which, ``Stats.route`` why. Or an
            ``Adjoint`` of your own.
        rng: whether the backward pass draws the random numbers of f, such as dropout masks, again.
            "auto": it does. "shared": in addition, every half step draws the same ones (one dropout
            mask per solve). "none": nothing is done.
        check: compare the reconstructed initial state with the original. True raises (on a GPU:
            turns the gradients into NaN and raises later, see ``Solution.verify``) if an exact
            state differs at all, or a float state by more than 1e-3 (2**-4 in 16 bits) of the
            largest number in the initial and final state; a number is another tolerance for float
            states (math.inf only measures); False compares nothing.
        accumulate: how gradients of 16-bit parameters and arguments are summed over the half steps:
            in "float32", or as "autograd" does, in their own dtype, bitwise as with "backprop".
            "hooks" always sums as "autograd", because its gradients go through autograd's graph.
        store_last: number of final half steps whose graphs autograd keeps, so that the backward
            pass need not evaluate f there: trades memory for time, bitwise the same for an exact
            state. "auto": as many as fit in `memory_budget`.
        memory_budget: bytes for store_last="auto". The first evaluation of f measures how many
            bytes a graph takes.
        save_at: numbers of steps, 1 to max_steps, after which to return z in ``Solution.saved``,
            differentiable, for intermediate losses. Each costs the memory of its z.
        backward_steps: differentiate only this many final steps, with the pair before them as a
            constant. z0 and y0 get no gradient.
        has_aux: whether f returns (z, aux), where aux is a tensor or a pytree of them, of the same
            form every time: router losses, penalties, statistics. ``Solution.aux`` holds them,
            differentiable. Any other tensor that leaves f and reaches a loss raises CaptureError.
        aux: how aux is reduced over the 2 * steps evaluations: "sum", "mean", "last", or "stack"
            along a new first dimension, the only one whose memory grows with the steps.
        pass_step: pass f the keyword `step`, the 0-based number of the step, in both passes.
        compile: compile f with torch.compile into two graphs, its values and its vector-Jacobian
            product; guards are checked once per solve. f is bitwise the same in both passes, but
            may differ bitwise from eager mode. It is traced at its first call and again for other
            shapes, and must be one graph without side effects or random numbers. Otherwise True
            raises, and "auto" runs f uncompiled; ``Stats.route`` says why.
        trace: keep the residual of every step in ``Stats.residuals``, on the device and without
            waiting for it. Results are bitwise unchanged.
        on_step: called as ``on_step(step, residual, z)`` after every step of the forward pass,
            without gradients: the number of steps taken, the residual of the last one (a 0-dim
            tensor on the device), and a copy of z with the structure of z0. Its return value is
            ignored, its random numbers do not affect f's, and its exceptions end the solve.
        kwargs: keyword arguments of f; tensors in them, also nested, receive gradients.

    Returns:
        A ``Solution``: the final z and y in z0's dtypes, statistics, and aux.

    Raises:
        ValueError, TypeError: an argument, or what f returned, is not as described.
        ValueError: an option that a CUDA graph under capture cannot hold. See ``graphed``.
        RangeError: a number left the range of an exact state. On a GPU z and y become NaN.
        ReconstructionError: from backward(): the initial state was not recovered.
        CaptureError: f reads a tensor that requires grad and was computed outside f, and "hooks"
            cannot run or another adjoint was named; or one that f kept from an earlier evaluation;
            or a tensor that f left behind reached a loss.
        RuntimeError: f changes its state in place, or reads buffers or other things that it writes;
            a cache that grows with each evaluation; a sharded f without "hooks"; batched gradients
            where they are not supported; an Opacus module; a torch.func transform or a forward-mode
            derivative, supported only by "functional" and "backprop" with a float state; a second
            derivative of an exact state.

    Under torch.no_grad nothing is kept, and z and y are bitwise the same if f is: an f compiled by
    torch.compile may differ in 16 bits. With grad mode on, f runs with it on in the forward pass
    too; its graph is dropped at once.

    Memory, not counting f and autograd: both states, z0, their copies in z0's dtype, two gradients
    and a seed. Only the digits grow with the steps, and with per_sample one byte per sample and
    check.

    Source: arXiv 2509.12917; the exact state is this project's.
    """
    check_callable(f, "solve(f, z0, *args)")
    given = read_options(
        {
            "beta": beta,
            "max_steps": max_steps,
            "tol": tol,
            "check_every": check_every,
            "per_sample": per_sample,
            "process_group": process_group,
            "residual_mask": residual_mask,
            "state": state,
            "frac_bits": frac_bits,
            "adjoint": adjoint,
            "rng": rng,
            "check": check,
            "accumulate": accumulate,
            "store_last": store_last,
            "memory_budget": memory_budget,
            "save_at": save_at,
            "backward_steps": backward_steps,
            "has_aux": has_aux,
            "aux": aux,
            "pass_step": pass_step,
            "compile": compile,
            "trace": trace,
            "on_step": on_step,
        }
    )
    check_every, beta = given["check_every"], given["beta"]
    if adjoint != "auto":
        f, args = adjoint_of(given["adjoint"]).prepare(f, args)
    leaves, structure = flatten("z0", z0)
    device, form = leaves[0].device, format_of(given["state"], leaves)
    bits = fractional_bits(given["frac_bits"], exact=form.exact)
    masked = masks(residual_mask, leaves, structure)
    if capturing(device):
        check_capture(given["tol"], bits, beta, rng, max_steps, exact=form.exact, on_step=on_step)
    else:
        deferred_checks.poll()
    steps = drawn(given["max_steps"])
    has_aux = given["has_aux"]
    mapping = FlatFunction(f, leaves, structure, has_aux=has_aux, pass_step=given["pass_step"])
    tensors = passed = mapping.take_args(args, kwargs)
    second = second_start(y0, leaves, structure)
    read = [*leaves, *(second or ()), *tensors, *([beta] if isinstance(beta, Tensor) else [])]
    evaluation = Evaluation(mapping, device, rng)
    chosen = chosen_adjoint(adjoint, evaluation.modules, given)
    evaluation.adjoint = chosen
    evaluation.transformed = transformed = chosen.check_transforms(form.exact, read)
    if torch.is_grad_enabled():
        check_modules(evaluation.modules, chosen)
        if chosen.takes_computed and evaluation.modules:
            tensors = [*tensors, *evaluation.take_computed()]
    dims = given["per_sample"]
    halting = Halting(leaves, dims, given["tol"], check_every) if dims else None
    problem = Problem(
        mapping=mapping,
        evaluation=evaluation,
        schedule=BetaSchedule(beta, steps, exact=form.exact, halting=halting),
        stopping=Stopping(
            given["tol"],
            check_every,
            process_group,
            device,
            halting,
            masked,
            mapping.unflatten,
            watch_of(given, mapping.unflatten, device, transformed=transformed),
        ),
        z0=leaves,
        y0=second,
        tensors=tensors,
        format=form,
        frac_bits=bits,
        adjoint=chosen,
        check=given["check"],
        accumulate_float32=accumulate == "float32",
        store_last=None if store_last == "auto" else given["store_last"],
        memory_budget=given["memory_budget"],
        save_at=steps_to_save(given["save_at"], steps),
        backward_steps=given["backward_steps"],
        aux=given["aux"] if has_aux else None,
    )
    route = "solver"
    out = None
    if given["compile"]:
        from .compile.walk import solve_by_graphs

        out, route = solve_by_graphs(problem, given)
    if not torch.is_grad_enabled() and not transformed:
        chosen = ADJOINTS["reversible"]  # bitwise the same, and nothing is kept
    elif out is None and not capturing(device):
        other = adjoint_of_computed(chosen, given, exact=form.exact)
        made = None if other is None else computed_outside(evaluation, leaves, tensors)
        if other is not None and made is not None:
            chosen, evaluation.adjoint, evaluation.weights = other, other, 0
            problem = replace(problem, adjoint=other, tensors=passed)
            route += f"; {other.name}, because f reads a tensor computed outside f (by {made})"
    if out is None:
        out = chosen.solve(problem)
    if chosen is not ADJOINTS.get(chosen.name):
        problem.check_outputs(out, chosen)
    out.stats.route = route
    z, y, *saved = (mapping.unflatten(leaves) for leaves in (out.z, out.y, *out.saved))
    return Solution(z, y, out.stats, saved, mapping.unflatten_aux(out.aux) if has_aux else None)
