"""``solve``: an equilibrium of f, and its exact gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from .adjoints.problem import Problem
from .adjoints.registry import ADJOINTS
from .compile.entry import for_compilers
from .compile.walk import solve_by_graphs
from .evaluation.adjoint import Adjoint
from .evaluation.auxiliary import Reduction
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
    """Iterate f to its equilibrium z = f(z, *args) by the pair update; differentiable.

        y <- (1 - beta) y + beta f(z, *args)
        z <- (1 - beta) z + beta f(y, *args)         from y = y0, z = z0

    The gradient is that of the steps taken, with respect to z0, y0, beta, the tensors in `args`,
    and every leaf that f reads besides (parameters, what it closes over). It is not the gradient
    of the limit: the two approach each other as the steps converge.

    Args:
        f: called as ``f(z, *args)``; returns what z is made of, in the same shapes. Any callable.
            It is evaluated twice in a step, and twice again for it in the backward pass. It must
            leave z as it is, and compute the same from the same z, args and random numbers.
        z0: where to start: a floating-point tensor or a pytree of them, on one device.
        args: passed to f; tensors in them, also nested, receive gradients.
        y0: the start of y, of z0's structure and shapes; z0 itself by default.
        beta: in (0, 2) and not 1. A number; a sequence with one for each step; a function of the
            step; or a tensor, which may require grad: one element, or with a float state of a
            single leaf one for each channel (see ``revdeq_kernels.update_``).
        max_steps: steps to take, each of two evaluations of f. Or a function that returns the
            number, called once: a depth drawn at random for every solve.
        tol: stop where the relative residual norm(y - f(y)) / (1e-5 + norm(f(y))), the largest
            over the leaves, falls below this. None or 0: take max_steps. On a GPU the decision
            waits for one check more than on a CPU, and nothing else waits. A ``StoppingRule``
            measures another residual.
        check_every: steps from one check of the residual to the next.
        per_sample: judge every sample, an index of dimension 0 of all leaves, by a residual of its
            own. An integer d: a sample is an index of the first d dimensions, so that with 2 every
            token of [batch, length, features] halts for itself. One that a check finds below tol
            stays as it is from the next step on, and gets the gradient of the steps that it took;
            the solve ends when none moves. f is evaluated for all of them to the end.
        process_group: a torch.distributed group whose ranks stop together, at the largest residual
            among them. Needed with a tol if f communicates.
        residual_mask: which positions count in the residual: a bool tensor whose shape is that of
            leading dimensions of every leaf, such as [batch, length] where tokens are padded, or a
            pytree of such tensors like z0. What stands where it is False, even NaN, has no part in
            the residual, of all together or of a sample. The mask does not change the gradient.
        state: what keeps y and z. "exact": fixed point, from which every step can be taken back
            bit for bit, 8 bytes per element of z0 and a digit for each half step (1/8 byte at beta
            0.5, 1/4 at 0.75, 1/3 at 0.8). torch.float32, float64, bfloat16 or float16, or their
            names, as "float32": loses precision on the way back, by 1/abs(1 - beta) in every half
            step. "auto": exact, or float64 if z0 has float64 leaves, whose precision a fixed-point
            state does not hold.
        frac_bits: fractional bits of an exact state: its resolution is `2**-frac_bits`, its
            range `2**(30 - frac_bits)`. "auto": 20 for f in float32 and 16 for less, or fewer if
            z0 or f(z0) is large; this reads the device once. An integer reads nothing.
        adjoint: "reversible" walks the solve back, at memory that does not grow with the steps
            (but for the digits). "backprop" stores what autograd stores: the definition.
            "checkpoint" stores the states. "hooks" is reversible inside autograd's own graph: for
            an f that is sharded by FSDP2, or closes over tensors that are no leaves. "functional"
            is reversible as one function of tensors, for torch.func and graph compilers: a state
            in float32 or float64, numbers as beta, no tol. "auto": "hooks" if f is sharded by
            FSDP2, or reads a tensor that was computed outside of it and that it was not given
            (found by one more evaluation of f, where f holds such a tensor), otherwise
            "reversible"; ``Stats.adjoint`` says which, and ``Stats.route`` why. An ``Adjoint`` is
            one of your own.
        rng: random numbers of f in the backward pass. "auto": those of the forward pass come again.
            "shared": also every half step draws the same ones (one dropout mask for the solve).
            "none": nothing is done.
        check: compare the states with the start after the walk back. True raises (on a GPU: turns
            the gradients into NaN and raises later, see ``Solution.verify``) if an exact state
            differs at all, or a float state by more than 1e-3 (2**-4 in 16 bits) of the largest
            number in start and end; a number is another tolerance for float states (math.inf
            measures only); False compares nothing.
        accumulate: how gradients of 16-bit parameters and arguments are added up over the half
            steps: "float32", or "autograd", in their own dtype, with the bits of "backprop". Under
            "hooks", whose gradients go through autograd's graph, always as "autograd".
        store_last: half steps, of the last ones, whose graphs are kept as autograd keeps them, so
            that the way back need not evaluate f there: memory for time, for an exact state at the
            same bits. "auto": as many as `memory_budget` holds.
        memory_budget: bytes for store_last="auto". The first evaluation of f tells how many one
            takes.
        save_at: numbers of steps, 1 to max_steps, after which z is wanted too: in
            ``Solution.saved``, differentiable, for losses on the way. Each takes the memory of its
            z, and nothing else.
        backward_steps: differentiate the last so many steps alone, as if the pair before them were
            given. The start gets no gradient.
        has_aux: whether f returns (z, aux), where aux is a tensor or a pytree of them in the same
            form each time: losses of routers, penalties, statistics. ``Solution.aux`` holds them,
            differentiable; what else leaves f and joins a loss raises.
        aux: how the values of the 2 * steps evaluations are reduced: "sum", "mean", "last", or
            "stack" along a new first dimension, the only one whose memory grows with the steps.
        pass_step: pass f the keyword `step`, the 0-based number of the step, in both passes.
        compile: have torch.compile make two graphs of f, its values and its product, which the
            solver calls below guards that are asked once in a solve. f has the same bits forward
            and back, and other bits than in eager mode. It is traced at its first call, and again
            for other shapes; f then has no side effects, draws no random numbers and is one graph.
            True raises where it is none, "auto" leaves f as it is there, and ``Stats.route`` says
            why.
        trace: keep the residual of every step, in ``Stats.residuals``: on the device, for which
            nothing waits. It changes no step and no bit.
        on_step: called as ``on_step(step, residual, z)`` after every step of the forward pass,
            without gradients: the number of steps taken, the residual of the last one (a tensor
            without dimensions, on the device), and a copy of z in the structure of z0. What it
            returns is ignored, its random numbers change none of f's, and its errors end the solve.
        kwargs: keyword arguments of f; tensors in them, also nested, receive gradients.

    Returns:
        z and y at the end, in z0's dtypes, statistics, and aux. See ``Solution``.

    Raises:
        ValueError, TypeError: an argument, or what f returned, is not as described.
        ValueError: while a CUDA graph is captured: options that it cannot hold. See ``graphed``.
        RangeError: a number left the range of an exact state. On a GPU z and y become NaN.
        ReconstructionError: from backward(): the way back did not end at the start.
        CaptureError: f reads a tensor that was computed from others outside f and requires grad,
            where "hooks" cannot take it or another adjoint was named; or one that it kept from an
            earlier evaluation; what f left behind joined a loss.
        RuntimeError: f changes its state, or reads buffers and other things that it writes; a cache
            that grows with each evaluation; a sharded f without "hooks"; batched gradients, where
            they cannot be taken; a module of Opacus; a transform of torch.func or a forward-mode
            derivative, which only "functional" and "backprop" with a float state take; a second
            derivative of an exact state.

    Under torch.no_grad nothing is kept and z and y have the same bits, where f has: an f compiled
    by torch.compile may have others in 16 bits. Called with grad mode on, f runs with it on in the
    forward pass too; its graph is dropped at once.

    Memory beside f and autograd: both states, z0, their copies in z0's dtype, two gradients and a
    seed; nothing of it grows with the steps but the digits, and with per_sample a byte for every
    sample and check.

    Source: arXiv 2509.12917; the exact state is this project's.
    """
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
        out, route = solve_by_graphs(problem, given)
    if not torch.is_grad_enabled() and not transformed:
        chosen = ADJOINTS["reversible"]  # the same bits, and nothing is kept
    elif out is None and not capturing(device):
        other = adjoint_of_computed(chosen, given, exact=form.exact)
        made = None if other is None else computed_outside(evaluation, leaves, tensors)
        if other is not None and made is not None:
            chosen, evaluation.adjoint, evaluation.weights = other, other, 0
            problem = replace(problem, adjoint=other, tensors=passed)
            route += f"; {other.name}, for f reads a tensor computed outside of it (by {made})"
    if out is None:
        out = chosen.solve(problem)
    if chosen is not ADJOINTS.get(chosen.name):
        problem.check_outputs(out, chosen)
    out.stats.route = route
    z, y, *saved = (mapping.unflatten(leaves) for leaves in (out.z, out.y, *out.saved))
    return Solution(z, y, out.stats, saved, mapping.unflatten_aux(out.aux) if has_aux else None)
