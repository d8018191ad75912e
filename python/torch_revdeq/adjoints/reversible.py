"""The reversible adjoint: exact gradients without stored activations.

One node of autograd's graph stands for the whole solve. Its backward pass reconstructs the state of
every half step from the one after it, evaluates f there once, and uses that evaluation both for the
inverse and for the vector-Jacobian product with f.

Source: arXiv 2509.12917, the backward pass of the reversible solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..evaluation.adjoint import MOST, Adjoint
from ..evaluation.auxiliary import AuxiliaryGradients, other_aux
from ..evaluation.boundary import Entrance, entered, guard, unguarded
from ..evaluation.closure import ClosureLeaves, ReadAgain, now
from ..evaluation.effects.naming import name_of
from ..evaluation.effects.standing import leaf_again
from ..evaluation.marks import NOISE
from ..evaluation.outside import made_outside
from ..iteration.loop import iterate
from ..runtime.deferred import report_check
from ..runtime.transforms import has_tangent, refuse_batched
from ..solution import Stats
from ..state.pair import Pair
from .adjoint_state import AdjointState, AdjointStateOfBeta
from .backprop import differentiated_again
from .primals import Primals
from .problem import Outputs, Problem
from .reconstruction import Check
from .stored_graphs import StoredGraph, StoredGraphs
from .vjp import VJPs, as_read, is_asked_for_leaves, keeps_graph, set_grad_enabled


class Reversible(Adjoint):
    """Reconstructs the iterates in the backward pass; only the digits grow with the steps."""

    name = "reversible"
    takes = MOST | {"store_last", "memory_budget"}
    takes_computed = True

    def solve(self, problem: Problem) -> Outputs:
        """See ``solve_reversible``."""
        return solve_reversible(problem)


def solve_reversible(problem: Problem) -> Outputs:
    """Run a solve whose backward pass reconstructs the iterates."""
    forward = _Forward(problem)
    with problem.evaluation.forward(replayed=forward.grad), torch.no_grad():
        first = forward.evaluate(0, problem.z0)
        # A graph that is kept (store_last) has saved f's copy of the state.
        pair = problem.pair(first, keep=forward.grad, private=forward.kept.wanted)
        noted = Noted(problem, pair)
        run = problem.schedule, problem.stopping, noted.after_step
        steps = iterate(pair, first, forward.evaluate, *run)
        z, y = pair.outputs()
        aux = [] if forward.auxiliary is None else forward.auxiliary.result()
    stats = problem.stats(pair, steps)
    saved = [leaf for step in problem.save_at for leaf in noted.saved[step]]
    outputs = [*z, *y, *saved]
    problem.check_range(pair, stats, [*outputs, *(leaf for leaf in aux if _has_nan(leaf))])
    inputs = Primals.of(problem, forward.closure.leaves)
    if forward.grad and any(tensor.requires_grad for tensor in inputs.all()):
        walk = _Walk(problem, forward, pair, steps, stats)
        states = [*noted.boundary, *pair.saved_tensors()]
        outputs = _Reversible.apply(walk, (*outputs, *aux), states, *inputs.all())
        outputs, aux = outputs[: len(outputs) - len(aux)], outputs[len(outputs) - len(aux) :]
        pair.release()
    forward.close()
    count = len(problem.z0)
    parts = [list(outputs[i : i + count]) for i in range(0, len(outputs), count)]
    return Outputs(parts[0], parts[1], parts[2:], stats, aux)


def _has_nan(leaf: Tensor) -> bool:
    """Whether the leaf's dtype has a NaN."""
    return leaf.is_floating_point() or leaf.is_complex()


class Noted:
    """Copies made in the forward pass: z for `save_at`, and the pair where gradients begin."""

    def __init__(self, problem: Problem, pair: Pair) -> None:
        self.problem, self.pair = problem, pair
        self.saved: dict[int, list[Tensor]] = {}
        self.boundary: list[Tensor] = []  # y and z at the first step that is differentiated

    def after_step(self, steps: int) -> None:
        """Copy what this step is due to keep."""
        if steps in self.problem.save_at:
            self.saved[steps] = [leaf.clone() for leaf in self.pair.read_z]
        if steps == self.problem.first_step:
            self.boundary = [leaf.clone() for leaf in (*self.pair.y, *self.pair.z)]


class _Forward:
    """f in the forward pass, and the leaves that it reads.

    With grad mode on, f runs with it on, as it will in the backward pass, and its graph is dropped
    at once: some modules differ bitwise without grad mode (torch's fast path of a transformer
    layer, or a graph compiled for inference). If f keeps part of a graph, no gradient may enter it,
    so f gets its tensors through an ``Entrance``. An f that cannot keep anything gets leaves.
    """

    def __init__(self, problem: Problem) -> None:
        self.grad = torch.is_grad_enabled()
        self.problem, self.evaluation = problem, problem.evaluation
        self.aliased = is_asked_for_leaves()
        self.entrance = None
        if self.grad and not self.evaluation.bare:
            self.entrance = Entrance()
            self.entrance.lead_from(problem.z0)
        self.tensors = self._cut_off()
        self.kept = StoredGraphs(problem.store_last if self.grad else 0, problem.memory_budget)
        self.kept.reads = [*problem.z0, *self.tensors]
        self.auxiliary = problem.auxiliary(in_place=True, marked=self.grad)
        outside = made_outside(problem.evaluation) if self.grad else ()
        self.closure = ClosureLeaves(self.tensors, problem.mapping.held, outside)
        self.known = -1  # number of leaves that f was known to read when the entrance was made

    def evaluate(self, k: int, leaves: Sequence[Tensor]) -> list[Tensor]:
        """f in half step k, without its graph."""
        if not self.grad:
            state = [leaf.detach() for leaf in leaves]
            values = _values(self.evaluation(k, state, self.tensors))
            return values if self.auxiliary is None else self.auxiliary.take(k, values)
        entrance = self.entrance
        set_grad_enabled(True)
        try:
            if entrance is None:
                state = entered(leaves)
            else:
                state = entrance.enter(leaves)
                entrance.gate.is_open = True
            since = now()
            read, given = state, self.tensors
            if self.aliased:
                read, given = as_read(state), as_read(given)
            if self.kept.wanted:
                evaluate = partial(self.evaluation, k, read, given)
                out = self.kept.evaluated(k, evaluate, state, self.closure, since)
            else:
                out = self.evaluation(k, read, given)
                self.closure.add(state, out, since)
        finally:
            set_grad_enabled(False)
            if entrance is not None:
                entrance.gate.is_open = False
        guard(state)
        if entrance is not None and self.known != len(self.closure.leaves):
            self._renew(entrance, first=k == 0)
        values = _values(out)
        if self.auxiliary is None:
            return values
        needs = [value.requires_grad for value in out]
        return self.auxiliary.take(k, values, grad=needs)

    def _renew(self, entrance: Entrance, *, first: bool) -> None:
        """Make the following states depend on everything that f was found to read.

        After the first evaluation f gets new arguments, so that one it kept is detected. Not if
        graphs are kept (store_last), which are differentiated with respect to the arguments.
        """
        self.known = len(self.closure.leaves)
        entrance.lead_from(Primals.of(self.problem, self.closure.leaves).all())
        if first and self.tensors and not self.kept.wanted:
            guard(self.tensors)
            self.tensors = self._cut_off()
            self.closure.renew(self.tensors)

    def _cut_off(self) -> list[Tensor]:
        """The arguments, as tensors of this solve."""
        with torch.set_grad_enabled(self.grad):  # otherwise they would be detached
            return [self._cut(t) for t in self.problem.tensors]

    def _cut(self, t: Tensor) -> Tensor:
        if not (self.grad and t.requires_grad):
            return t.detach()
        if self.entrance is None:
            return t.detach().requires_grad_()
        return self.entrance.behind(t)

    def close(self) -> None:
        """From now on, raise if a gradient arrives at what f was given."""
        guard(self.tensors)


def _values(out: Sequence[Tensor]) -> list[Tensor]:
    """What f returned, without its graph; RuntimeError if a tangent would be lost with it."""
    if forward_ad._current_level >= 0 and has_tangent(out):
        raise RuntimeError(
            "f: expected to read no tensor with a forward-mode derivative, got one; choose "
            "adjoint='backprop' and state=torch.float32 or torch.float64 inside torch.func"
        )
    return [out[0].detach()] if len(out) == 1 else [value.detach() for value in out]


class _Walk:
    """What the backward pass needs besides the tensors that autograd keeps.

    The leaves that f closes over are kept here: this costs no memory, and they carry the hooks,
    whereas autograd may unpack another object.
    """

    def __init__(
        self, problem: Problem, forward: _Forward, pair: Pair, steps: int, stats: Stats
    ) -> None:
        closure = forward.closure
        self.problem = problem.without_tensors()
        self.counts = Primals.of(problem, closure.leaves).counts()
        self.pair, self.steps, self.stats = pair, steps, stats
        self.closure = closure.leaves
        self.versions = [leaf._version for leaf in closure.leaves]
        read = [*forward.tensors, *closure.leaves]
        self.reached_twice = closure.reached_twice(read)
        self.kept: dict[int, StoredGraph] = {}  # of the forward pass
        self.arguments: list[Tensor] | None = None  # the arguments that these graphs read
        self.entrance = forward.entrance or Entrance()
        self.computed = forward.entrance is not None  # whether f got its arguments through it
        if forward.kept.wanted:
            self.kept, self.arguments = forward.kept.by_half_step(), forward.tensors
        self.aliased, self.prints = forward.aliased, closure.prints
        aux = forward.auxiliary
        self.differentiable = [] if aux is None else aux.differentiable  # for each leaf of it
        self.marks = [] if aux is None else aux.marks

    def check_versions(self) -> None:
        """Check that the closure's leaves are unmodified, as autograd does for saved tensors."""
        for leaf, version in zip(self.closure, self.versions, strict=True):
            if leaf._version != version:
                name = name_of(leaf, self.problem.evaluation.modules)
                raise RuntimeError(
                    "solve: one of the variables needed for gradient computation has been modified "
                    f"by an inplace operation: {name or 'a tensor'}, of shape {tuple(leaf.shape)}, "
                    f"which f reads, at version {leaf._version}, not {version}; change it (as "
                    "optimizer.step() does) after backward()"
                )


class _Reversible(torch.autograd.Function):
    """The solve as one node. Its inputs: z0, y0, beta, the arguments of f, what f closes over."""

    @staticmethod
    def forward(
        ctx: Any, walk: _Walk, outputs: tuple[Tensor, ...], states: list[Tensor], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        given = inputs[: len(inputs) - len(walk.closure)]
        ctx.walk, ctx.given = walk, len(given)
        ctx.save_for_backward(*given, *states)
        ctx.set_materialize_grads(False)
        aux = outputs[len(outputs) - len(walk.differentiable) :]
        rows = zip(aux, walk.differentiable, strict=True)
        ctx.mark_non_differentiable(*(leaf for leaf, needs in rows if not needs))
        return outputs

    @staticmethod
    def settings_of(ctx: Any) -> int:
        """The operations of f, for the print of a graph that has this solve in it."""
        return hash(tuple(operations for operations, _ in ctx.walk.prints))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        walk: _Walk = ctx.walk
        refuse_batched(grads)
        saved = ctx.saved_tensors  # raises if one was changed in place since
        walk.check_versions()
        inputs = Primals.split([*saved[: ctx.given], *walk.closure], walk.counts)
        wanted = Primals.split(ctx.needs_input_grad[3:], inputs.counts())
        states = saved[ctx.given :]
        if torch.is_grad_enabled():
            ends = final_states(states, len(inputs.z0), walk.problem.first_step)
            result = differentiated_again(walk.problem, walk.steps, inputs, wanted, grads, ends)
        else:
            result = _walk_back(walk, inputs, wanted, states, grads)
        return (None, None, None, *result.all())


def final_states(states: Sequence[Tensor], leaves: int, first_step: int) -> Sequence[Tensor]:
    """The final y and z among the saved states, where `backward_steps` puts others before them."""
    return states[2 * leaves : 4 * leaves] if first_step else states[: 2 * leaves]


def _walk_back(
    walk: _Walk,
    inputs: Primals[Tensor],
    wanted: Primals[bool],
    states: Sequence[Tensor],
    grads: Sequence[Tensor | None],
) -> Primals[Tensor | None]:
    """The gradients of the inputs, with one evaluation of f per half step."""
    problem, leaves = walk.problem, len(inputs.z0)
    arguments = walk.arguments
    if arguments is None:
        rows = zip(inputs.arguments, wanted.arguments, strict=True)
        arguments = [leaf_again(t, needs=want, computed=walk.computed) for t, want in rows]
    read = [*arguments, *inputs.closure]
    wants = [*wanted.arguments, *wanted.closure]
    # A parameter that was frozen since the forward pass takes no gradient, as in autograd.
    chosen = [
        i for i, (t, want) in enumerate(zip(read, wants, strict=True)) if want and t.requires_grad
    ]
    ends = len(grads) - len(walk.differentiable)
    groups = [grads[i : i + leaves] for i in range(0, ends, leaves)]
    of_aux = None
    if problem.aux is not None:
        of_aux = AuxiliaryGradients(
            problem.aux, 2 * walk.steps, grads[ends:], walk.marks, 0.0 if problem.exact else NOISE
        )
    unguarded(arguments)
    again = ReadAgain(
        arguments, inputs.closure, walk.prints, partial(name_of, modules=problem.evaluation.modules)
    )
    vjps = VJPs(
        problem.evaluation,
        arguments,
        [read[i] for i in chosen],
        [walk.reached_twice[i] for i in chosen],
        accumulate_float32=problem.accumulate_float32,
        kept=walk.kept,
        # An operation counter, then or now, adds operations of its own.
        again=None if walk.aliased or is_asked_for_leaves() else again,
        auxiliary=of_aux,
    )
    first = problem.first_step
    boundary = list(states[: 2 * leaves]) if first else []
    pair = walk.pair.from_saved(consumable(states[len(boundary) :], 2 * leaves))
    check = Check(problem, pair)
    injected = dict(zip(problem.save_at, groups[2:], strict=True))
    adjoint = (AdjointStateOfBeta if inputs.beta else AdjointState)(pair, *groups[:2])
    with problem.evaluation.replay(inputs.closure), walk.entrance.opened():
        adjoint.begin(walk.steps - 1)
        for n in reversed(range(first, walk.steps)):
            if n + 1 in injected:
                adjoint.inject(n, injected[n + 1])
            f, vjp = vjps(2 * n + 1, pair.read_y, adjoint.seed)
            adjoint.after_y(n, f, vjp)
            f, vjp = vjps(2 * n, pair.read_z if n else inputs.z0, adjoint.seed)
            adjoint.after_z(n, f, vjp, joined=n == 0 and not inputs.y0)
    guard(arguments)
    parts: list[Tensor | None] = [None] * len(read)
    for i, gradient in zip(chosen, vjps.gradients(), strict=True):
        parts[i] = gradient
    beta = adjoint.grad_beta if isinstance(adjoint, AdjointStateOfBeta) else None
    result: Primals[Tensor | None] = Primals(
        z0=of_start(adjoint.grad_z, inputs.z0, first),
        y0=of_start(adjoint.grad_y, inputs.y0, first),
        beta=[None if beta is None else beta.to(b.dtype) for b in inputs.beta],
        arguments=parts[: len(arguments)],
        closure=parts[len(arguments) :],
    )
    if of_aux is not None and of_aux.failed is not None:
        pending = report_check(of_aux.failed, other_aux, result.tensors())
        walk.stats._pending += [] if pending is None else [pending]
    if not keeps_graph():
        walk.kept.clear()
        walk.arguments = None
    if first:
        y_start, z_start = boundary[:leaves], boundary[leaves:]
    else:
        z_start = pair.encode(inputs.z0)
        y_start = pair.encode(inputs.y0) if inputs.y0 else z_start
    steps = walk.steps - first
    check.after(pair, z_start, y_start, steps, walk.stats, result.tensors())
    return result


def of_start(grads: Sequence[Tensor], leaves: Sequence[Tensor], first: int) -> list[Tensor | None]:
    """The gradients of an initial state, in its dtypes; None if `backward_steps` excludes it."""
    if first:
        return [None] * len(leaves)
    return [g.to(leaf.dtype) for g, leaf in zip(grads, leaves, strict=False)]


def consumable(states: Sequence[Tensor], pairs: int) -> list[Tensor]:
    """The saved states, in memory that the backward pass may overwrite.

    That is autograd's own memory if it is about to free it, otherwise a copy. Digits are only read.
    """
    if not keeps_graph():
        return list(states)
    return [state.clone() for state in states[:pairs]] + list(states[pairs:])
