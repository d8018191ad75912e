"""``adjoint="functional"``: the reversible adjoint without in-place operations.

A pure function of tensors made of PyTorch operations, which torch.func transforms and graph
compilers can trace. Its backward pass starts from the final y and z and is itself differentiable,
to any order. Memory does not grow with the steps, unless the backward pass is to be differentiated
too, which torch.func always provides for.

Source: arXiv 2509.12917.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from revdeq_kernels.ops.half_step import inverted, updated

from ..evaluation.adjoint import Adjoint
from ..evaluation.auxiliary import Auxiliary, AuxiliaryGradients, Reduction, collecting
from ..evaluation.marks import NOISE, mark_of
from ..iteration.beta import BetaSchedule
from ..iteration.stopping import Stopping
from ..runtime.transforms import inside_transform, is_batched
from ..state.floating import FloatPair
from ..state.pair import Leaves
from .functional_vjp import (
    Again,
    Call,
    InPlace,
    Levels,
    Once,
    Product,
    Traced,
    is_differentiable,
    watched,
    watched_eager,
)
from .problem import Outputs, Problem
from .reconstruction import Check, float_tolerance, is_far
from .vjp import is_asked_for_leaves

_exchanging = threading.RLock()
"""Held while a module's parameters are replaced: threads may share the module."""


def with_parameters(f: nn.Module) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """A function that takes the module's parameters as its first argument after z, and these."""

    def of_parameters(z: Any, parameters: dict[str, Tensor], *args: Any, **more: Any) -> Any:
        return functional_call(f, parameters, (z, *args), more)

    if torch.compiler.is_compiling():
        return of_parameters, dict(f.named_parameters())
    with _exchanging:
        parameters: dict[str, Tensor] = dict(f.named_parameters())
        names = {id(parameter): name for name, parameter in parameters.items()}
        slots = [
            (module._parameters, own, names[id(parameter)])
            for module in f.modules()
            for own, parameter in module._parameters.items()
            if parameter is not None
        ]

    def exchanged(z: Any, parameters: dict[str, Any], *args: Any, **more: Any) -> Any:
        """The same, without looking up every name again in every half step."""
        with _exchanging:
            before = [places[own] for places, own, _ in slots]
            try:
                for places, own, name in slots:
                    places[own] = parameters[name]
                return f(z, *args, **more)
            finally:
                for (places, own, _), parameter in zip(slots, before, strict=True):
                    places[own] = parameter

    exchanged.__dict__["__wrapped__"] = f  # for searches that look for modules
    return exchanged, parameters


@dataclass(eq=False, repr=False)
class Run:
    """A solve as a function of tensors: z0, y0 if `second`, and f's tensor arguments."""

    call: Call
    betas: list[float]
    leaves: int
    second: bool
    read: list[torch.dtype]  # dtypes of what f reads, leaf by leaf
    accumulate_float32: bool  # sum 16-bit gradients in float32
    stopping: Stopping | None = None  # measures the steps, all of which are taken
    compare: Callable[[Leaves, Leaves, Leaves, Leaves], Leaves] | None = None
    around_backward: Callable[[], AbstractContextManager[None]] = nullcontext
    around_jvp: Callable[[], AbstractContextManager[None]] = nullcontext
    aux: Reduction | None = None  # how f's aux is reduced; None: f returns only the state
    prints: dict[int, int] = field(default_factory=dict)  # of the graphs of all half steps
    marks: list[Tensor] = field(default_factory=list)  # of aux in all half steps, in eager mode
    needed: set[int] = field(default_factory=set)  # leaves of aux that require grad
    fixed: tuple[int, ...] = ()  # leaves of aux that do not, as far as is known
    checked: bool = True  # whether the backward pass is compared with the forward pass
    counted: bool = False  # whether an operation counter was on, which adds operations
    transformed: bool = False  # called inside a transform, whose tensors f may close over

    def split(self, tensors: Leaves) -> tuple[Leaves, Leaves, Leaves]:
        """z0, y0, and the other tensors."""
        z, rest = tensors[: self.leaves], tensors[self.leaves :]
        return (z, rest[: self.leaves], rest[self.leaves :]) if self.second else (z, z, rest)

    def forward(self, tensors: Leaves) -> list[Tensor]:
        """The final z and y, in the dtype of the state, and aux."""
        z, y, given = self.split(tensors)
        auxiliary = None if self.aux is None else Auxiliary(self.aux, self.leaves)
        call = collecting(lambda k, leaves: self.call(k, leaves, given), auxiliary)
        for n, beta in enumerate(self.betas):
            f = call(2 * n, self.reading(z))
            y = _each(updated, y, f, beta)
            read = self.reading(y)
            f = call(2 * n + 1, read)
            last, watch = n + 1 == len(self.betas), self.stopping and self.stopping.watch
            if self.stopping is not None and (last or watch):
                self.stopping.look(read, f, due=last)
            z = _each(updated, z, f, beta)
            if watch:
                watch.after_step(n + 1, partial(self.reading, z))
        return [*z, *y, *([] if auxiliary is None else auxiliary.result())]

    def differentiable(self, tensors: Leaves) -> Leaves:
        """The same, with a backward pass that reconstructs the iterates."""
        compiled = torch.compiler.is_dynamo_compiling()
        function = _Reversal if compiled else _ReversalForward
        return list(function.apply(self, *tensors))

    def reading(self, state: Leaves) -> list[Tensor]:
        """What f reads of a state."""
        return [leaf.to(dtype) for leaf, dtype in zip(state, self.read, strict=True)]

    def watched(self, tensors: Sequence[Tensor]) -> Run:
        """The same, but raises if f reads tensors other than these."""
        if self.transformed or torch.compiler.is_compiling():
            return replace(self, call=watched(self.call))
        self.counted = is_asked_for_leaves()
        return replace(self, call=watched_eager(self.call, tensors, self.note))

    def note(self, k: int, out: Leaves, made: int) -> None:
        """After half step k: note which leaves of aux require grad, and the print of its graph."""
        self.prints[k] = made
        if self.aux is not None and self.checked:
            self.marks.append(mark_of(out[self.leaves :]))
        self.needed |= {i for i, value in enumerate(out[self.leaves :]) if value.requires_grad}

    def product(self, given: Leaves, wanted: Sequence[bool], grads: Leaves) -> Product:
        """Evaluates and differentiates f in the backward pass of these gradients."""
        rest = {
            "accumulate_float32": self.accumulate_float32,
            "auxiliary": self._gradients_of_aux(grads),
        }
        if self.transformed or torch.compiler.is_compiling():
            return Traced(self.call, self.reading, given, **rest)
        plain = Once if is_batched(grads) else InPlace
        kind = Again if torch.is_grad_enabled() else plain
        if kind is InPlace and not self.counted:
            rest["prints"] = self.prints
        return kind(self.call, self.reading, given, wanted, **rest)

    def _gradients_of_aux(self, grads: Leaves) -> AuxiliaryGradients | None:
        if self.aux is None:
            return None
        # Counts and detached tensors have none.
        rows = enumerate(grads[2 * self.leaves :])
        found = [g if i not in self.fixed and is_differentiable(g) else None for i, g in rows]
        return AuxiliaryGradients(self.aux, 2 * len(self.betas), found, self.marks, NOISE)


def _each(step: Callable[..., Tensor], state: Leaves, f: Leaves, beta: float) -> list[Tensor]:
    rows = zip(state, f, strict=True)
    return [step(leaf, value, beta).to(leaf.dtype) for leaf, value in rows]


class Functional(Adjoint):
    """Reversible as one function of tensors, for torch.func and full-graph tracing."""

    name = "functional"
    takes_transforms = exchanges_parameters = True

    def prepare(self, f: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """A module's parameters become its first argument."""
        if not isinstance(f, nn.Module):
            return f, args
        f, parameters = with_parameters(f)
        return f, (parameters, *args)

    def solve(self, problem: Problem) -> Outputs:
        """See ``solve_functional``."""
        return solve_functional(problem)


def solve_functional(problem: Problem) -> Outputs:
    """Run a solve that is one pure function of tensors."""
    form = problem.format  # a plain format: only the steps of the float ops
    check_functional(form.stored if form.plain else form.name, problem.schedule)
    evaluation, state, schedule = problem.evaluation, form.stored, problem.schedule
    start = [leaf.to(state) for leaf in (*problem.z0, *(problem.y0 or ()))]
    read = [leaf.dtype for leaf in problem.z0]
    run = Run(
        evaluation,
        schedule.numbers,
        len(read),
        problem.y0 is not None,
        read,
        problem.accumulate_float32,
    )
    run.transformed, run.aux = inside_transform(), problem.aux
    run.checked = problem.check is not False
    run.stopping = problem.stopping
    run.around_backward, run.around_jvp = partial(evaluation.replay, ()), evaluation.repeated
    with evaluation.forward(replayed=True):
        ends = run.differentiable([*start, *problem.tensors])
    z, y, aux = ends[: len(read)], ends[len(read) : 2 * len(read)], ends[2 * len(read) :]
    layout = problem.layout()
    stats = problem.stats(FloatPair(list(y), list(z), layout, schedule), schedule.max_steps)

    def compare(back: Leaves, start: Leaves, end: Leaves, found: Leaves) -> Leaves:
        if torch.is_grad_enabled() or inside_transform():
            return poisoned(back, start, end, found, problem.check, state)
        count = len(read)
        pairs = [FloatPair(x[count:], x[:count], layout, schedule) for x in (end, back)]
        check = Check(problem, pairs[0])
        check.after(pairs[1], start[:count], start[count:], schedule.max_steps, stats, found)
        return found

    run.compare = compare
    return Outputs(run.reading(z), run.reading(y), [], stats, aux)


def poisoned(
    back: Leaves, start: Leaves, end: Leaves, found: Leaves, check: bool | float, state: torch.dtype
) -> Leaves:
    """The gradients; NaN if the initial state was not recovered, where nothing can be raised."""
    if check is False:
        return found
    back, start, end = ([leaf.detach() for leaf in part] for part in (back, start, end))
    far = is_far(back, start, end, float_tolerance(check, state))
    return [torch.where(far, float("nan"), gradient) for gradient in found]


def check_functional(state: Any, schedule: BetaSchedule) -> None:
    """Raise for a state or beta that needs the ops."""
    if state not in (torch.float32, torch.float64):
        got = "an exact state" if state in (None, "auto", "exact") else str(state)
        raise ValueError(
            "state: expected torch.float32 or torch.float64 with adjoint='functional', got "
            f"{got}; choose one of them, or another adjoint"
        )
    if schedule.tensor is not None:
        raise TypeError(
            "beta: expected numbers with adjoint='functional', got a tensor; choose another adjoint"
        )


class _Reversal(torch.autograd.Function):
    """From the tensors of a ``Run`` to its final y and z."""

    generate_vmap_rule = True

    @staticmethod
    def forward(run: Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        with Levels() if run.transformed else nullcontext():
            out = run.watched(tensors).forward(list(tensors))
            if not (run.transformed or torch.compiler.is_compiling()):
                leaves = range(len(out) - 2 * run.leaves)
                run.fixed = tuple(i for i in leaves if i not in run.needed)
            return tuple(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.run, *tensors = inputs
        count = 2 * ctx.run.leaves
        ends = output[:count]
        if ctx.run.fixed:
            ctx.mark_non_differentiable(*(output[count + i] for i in ctx.run.fixed))
        ctx.save_for_backward(*ends, *tensors)
        if not torch.compiler.is_dynamo_compiling():
            ctx.save_for_forward(*ends, *tensors)  # the same ones: vmap notes one of the two

    @staticmethod
    def settings_of(ctx: Any) -> int:
        """The operations of f, for the print of a graph that has this solve in it."""
        return hash(tuple(ctx.run.prints.values()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run: Run = ctx.run
        saved = ctx.saved_tensors  # once: a checkpoint around the solve unpacks it once
        count = 2 * run.leaves
        ends, tensors = list(saved[:count]), list(saved[count:])
        with run.around_backward():
            return None, *_walk_back(run, ends, tensors, list(grads), ctx.needs_input_grad[1:])


class _ReversalForward(_Reversal):
    """The same, with a forward-mode derivative, which compilers do not support."""

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        run: Run = ctx.run
        tensors = list(ctx.saved_tensors[2 * run.leaves :])
        moving = [i for i, tangent in enumerate(tangents) if tangent is not None]

        def of_moving(*values: Tensor) -> tuple[Tensor, ...]:
            return tuple(run.forward(_replaced(tensors, moving, values)))

        primals = tuple(tensors[i] for i in moving)
        with run.around_jvp():
            return jvp(of_moving, primals, tuple(tangents[i] for i in moving))[1]


def _walk_back(
    run: Run, ends: Leaves, tensors: Leaves, grads: Leaves, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of the tensors, with one evaluation of f per half step."""
    count = run.leaves
    z, y, grad_z, grad_y = ends[:count], ends[count:], grads[:count], grads[count : 2 * count]
    z0, y0, given = run.split(tensors)
    first = len(tensors) - len(given)
    product = run.product(given, wanted[first:], grads)
    for n in reversed(range(len(run.betas))):
        beta = run.betas[n]
        f, of_y = product(2 * n + 1, y, [beta * g for g in grad_z])
        z = _each(inverted, z, f, beta)
        grad_y = [g + part for g, part in zip(grad_y, of_y, strict=True)]
        f, of_z = product(2 * n, z, [beta * g for g in grad_y])
        y = _each(inverted, y, f, beta)
        rows = zip(grad_z, of_z, strict=True)
        grad_z = [(1.0 - beta) * g + part for g, part in rows]
        grad_y = [(1.0 - beta) * g for g in grad_y]
    if not run.second:
        grad_z = [a + b for a, b in zip(grad_z, grad_y, strict=True)]
    starts = [*grad_z, *grad_y] if run.second else grad_z
    parts = product.gradients()
    if run.compare is None:
        return [*starts, *parts]
    places = [i for i, part in enumerate(parts) if part is not None]
    found = [*starts, *(part for part in parts if part is not None)]
    found = run.compare([*z, *y], [*z0, *y0], ends, found)
    return [*found[:first], *_replaced([None] * len(parts), places, found[first:])]


def _replaced(tensors: Sequence[Any], places: Sequence[int], values: Sequence[Tensor]) -> list[Any]:
    """The tensors, with those at `places` replaced."""
    result = list(tensors)
    for place, value in zip(places, values, strict=True):
        result[place] = value
    return result
