"""The reversible adjoint: exact gradients of the solve by walking it back, in constant memory.

One node of autograd's graph stands for the whole solve. Its backward pass reconstructs the state of
every half step from the one after it, evaluates f there once, and uses that evaluation both for the
inverse and for the product of f's Jacobian with the adjoint.

Source: arXiv 2509.12917, the backward pass of the reversible solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .captures import Captures
from .carry import Carry, LearningCarry
from .inputs import Inputs
from .iteration import iterate
from .kept import Graph, Kept
from .pair import Pair
from .problem import Outputs, Problem
from .products import Products, as_read, is_asked_for_leaves, keeps_graph
from .reconstruction import Check
from .solution import Stats
from .stored import differentiated_again
from .transforms import has_tangent, refuse_batched


def solve_reversible(problem: Problem) -> Outputs:
    """z, y and the statistics of a solve whose backward pass walks back."""
    forward = _Forward(problem)
    with problem.evaluation.forward(replayed=forward.grad), torch.no_grad():
        first = forward.evaluate(0, problem.z0)
        # A graph that is kept has saved f's copy of the state.
        pair = problem.pair(first, keep=forward.grad, private=forward.kept.wanted)
        noted = _Noted(problem, pair)
        run = problem.schedule, problem.stopping, noted.after_step
        steps = iterate(pair, first, forward.evaluate, *run)
        z, y = pair.outputs()
    stats = problem.stats(pair, steps)
    saved = [leaf for step in problem.save_at for leaf in noted.saved[step]]
    outputs = [*z, *y, *saved]
    problem.check_range(pair, stats, outputs)
    inputs = Inputs.of(problem, forward.captures.leaves)
    if not (forward.grad and any(tensor.requires_grad for tensor in inputs.all())):
        return _unflattened(problem, outputs, stats)
    read = [*forward.tensors, *forward.captures.leaves]
    walk = _Walk(problem, inputs, pair, steps, stats, forward.captures.reached_twice(read))
    if forward.kept.wanted:
        walk.kept, walk.arguments = forward.kept.by_half_step(), forward.tensors
    states = [*noted.boundary, *pair.tensors()]
    outputs = _Reversible.apply(walk, tuple(outputs), states, *inputs.all())
    pair.forget()
    return _unflattened(problem, outputs, stats)


def _unflattened(problem: Problem, outputs: Sequence[Tensor], stats: Stats) -> Outputs:
    count = len(problem.z0)
    parts = [list(outputs[i : i + count]) for i in range(0, len(outputs), count)]
    return Outputs(parts[0], parts[1], parts[2:], stats)


class _Noted:
    """What the forward pass keeps on its way: z where the caller wants it, and the boundary."""

    def __init__(self, problem: Problem, pair: Pair) -> None:
        self.problem, self.pair = problem, pair
        self.saved: dict[int, list[Tensor]] = {}
        self.boundary: list[Tensor] = []  # y and z at the first step that is differentiated

    def after_step(self, steps: int) -> None:
        """Copies, where they are due."""
        if steps in self.problem.save_at:
            self.saved[steps] = [leaf.clone() for leaf in self.pair.read_z]
        if steps == self.problem.first_step:
            self.boundary = [leaf.clone() for leaf in (*self.pair.y, *self.pair.z)]


class _Forward:
    """f in the forward pass, and what it was found to read.

    With grad mode on, f runs with it on, as it will on the way back, and its graph is dropped at
    once: some modules compute other bits without (torch's fast path of a transformer layer, or a
    graph that a compiler made for inference).
    """

    def __init__(self, problem: Problem) -> None:
        self.grad = torch.is_grad_enabled()
        self.evaluation = problem.evaluation
        self.tensors = [
            t.detach().requires_grad_(self.grad and t.requires_grad) for t in problem.tensors
        ]
        self.captures = Captures(self.tensors)
        self.aliased = is_asked_for_leaves()
        count = problem.store_last if self.grad else 0
        self.kept = Kept(count, problem.memory_budget, [*problem.z0, *self.tensors])

    def evaluate(self, k: int, leaves: Sequence[Tensor]) -> list[Tensor]:
        """f in half step k, without its graph."""
        if not self.grad:
            return _values(self.evaluation(k, [leaf.detach() for leaf in leaves], self.tensors))
        with torch.enable_grad():
            state = [leaf.detach().requires_grad_() for leaf in leaves]
            read, tensors = state, self.tensors
            if self.aliased:
                read, tensors = as_read(state), as_read(tensors)
            evaluate = partial(self.evaluation, k, read, tensors)
            out = self.kept.evaluated(k, evaluate, state, self.captures)
        return _values(out)


def _values(out: Sequence[Tensor]) -> list[Tensor]:
    """What f returned, without its graph; a tangent that would be lost with it is refused."""
    if has_tangent(out):
        raise RuntimeError(
            "f: expected to read no tensor with a forward-mode derivative, got one; choose "
            "adjoint='backprop' and state=torch.float32 or torch.float64 inside of torch.func"
        )
    return [value.detach() for value in out]


class _Walk:
    """What the backward pass needs beside tensors. The tensors are autograd's to keep."""

    def __init__(
        self,
        problem: Problem,
        inputs: Inputs[Tensor],
        pair: Pair,
        steps: int,
        stats: Stats,
        reached_twice: list[bool],
    ) -> None:
        self.problem = replace(problem, z0=[], y0=None, tensors=[])
        self.counts = inputs.counts()
        self.pair, self.steps, self.stats = pair, steps, stats
        self.reached_twice = reached_twice
        self.kept: dict[int, Graph] = {}  # of the forward pass
        self.arguments: list[Tensor] | None = None  # those that they read


class _Reversible(torch.autograd.Function):
    """The solve as one node. Its inputs: z0, y0, beta, the arguments of f, what f closes over."""

    @staticmethod
    def forward(
        ctx: Any, walk: _Walk, outputs: tuple[Tensor, ...], states: list[Tensor], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.walk, ctx.inputs = walk, len(inputs)
        ctx.save_for_backward(*inputs, *states)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        walk: _Walk = ctx.walk
        refuse_batched(grads)
        saved = ctx.saved_tensors  # refuses what was changed in place since
        inputs = Inputs.split(saved[: ctx.inputs], walk.counts)
        wanted = Inputs.split(ctx.needs_input_grad[3:], walk.counts)
        if torch.is_grad_enabled():
            result = differentiated_again(walk.problem, walk.steps, inputs, wanted, grads)
        else:
            states = saved[ctx.inputs :]
            result = _walk_back(walk, inputs, wanted, states, grads)
        return (None, None, None, *result.all())


def _walk_back(
    walk: _Walk,
    inputs: Inputs[Tensor],
    wanted: Inputs[bool],
    states: Sequence[Tensor],
    grads: Sequence[Tensor | None],
) -> Inputs[Tensor | None]:
    """The gradients of the inputs, by one evaluation of f for every half step."""
    problem, leaves = walk.problem, len(inputs.z0)
    arguments = walk.arguments
    if arguments is None:
        rows = zip(inputs.arguments, wanted.arguments, strict=True)
        arguments = [t.detach().requires_grad_(want) for t, want in rows]
    read = [*arguments, *inputs.captures]
    wants = [*wanted.arguments, *wanted.captures]
    # A parameter that was frozen since the forward pass takes no gradient, as in autograd.
    chosen = [
        i for i, (t, want) in enumerate(zip(read, wants, strict=True)) if want and t.requires_grad
    ]
    products = Products(
        problem.evaluation,
        arguments,
        [read[i] for i in chosen],
        [walk.reached_twice[i] for i in chosen],
        wide=problem.wide,
        kept=walk.kept,
    )
    first = problem.first_step
    boundary = list(states[: 2 * leaves]) if first else []
    pair = walk.pair.resumed(_consumable(states[len(boundary) :], 2 * leaves))
    check = Check(problem, pair)
    groups = [grads[i : i + leaves] for i in range(0, len(grads), leaves)]
    injected = dict(zip(problem.save_at, groups[2:], strict=True))
    carry = (LearningCarry if inputs.beta else Carry)(pair, *groups[:2])
    with problem.evaluation.replay(inputs.captures):
        carry.begin(walk.steps - 1)
        for n in reversed(range(first, walk.steps)):
            if n + 1 in injected:
                carry.inject(n, injected[n + 1])
            f, vjp = products(2 * n + 1, pair.read_y, carry.seed)
            carry.after_y(n, f, vjp)
            f, vjp = products(2 * n, pair.read_z if n else inputs.z0, carry.seed)
            carry.after_z(n, f, vjp, joined=n == 0 and not inputs.y0)
    parts: list[Tensor | None] = [None] * len(read)
    for i, gradient in zip(chosen, products.gradients(), strict=True):
        parts[i] = gradient
    beta = carry.grad_beta if isinstance(carry, LearningCarry) else None
    result: Inputs[Tensor | None] = Inputs(
        z0=_of_start(carry.grad_z, inputs.z0, first),
        y0=_of_start(carry.grad_y, inputs.y0, first),
        beta=[None if beta is None else beta.to(b.dtype) for b in inputs.beta],
        arguments=parts[: len(arguments)],
        captures=parts[len(arguments) :],
    )
    if not keeps_graph():
        walk.kept.clear()
        walk.arguments = None
    if first:
        y_start, z_start = boundary[:leaves], boundary[leaves:]
    else:
        z_start = pair.keeping(inputs.z0)
        y_start = pair.keeping(inputs.y0) if inputs.y0 else z_start
    steps = walk.steps - first
    check.after(pair, z_start, y_start, steps, walk.stats, result.tensors())
    return result


def _of_start(grads: Sequence[Tensor], leaves: Sequence[Tensor], first: int) -> list[Tensor | None]:
    """The gradients of a start, in its dtypes; none where the way back ended before it."""
    if first:
        return [None] * len(leaves)
    return [g.to(leaf.dtype) for g, leaf in zip(grads, leaves, strict=False)]


def _consumable(states: Sequence[Tensor], pairs: int) -> list[Tensor]:
    """The saved states, in memory that the way back may overwrite.

    That is autograd's own if it is about to free it, and otherwise a copy. Digits are only read.
    """
    if not keeps_graph():
        return list(states)
    return [state.clone() for state in states[:pairs]] + list(states[pairs:])
