"""A solve with f as two compiled graphs: forward, and backward with the reversible adjoint.

Only f and its vector-Jacobian product are compiled. The half steps are kernels already; the pair,
the stopping criterion, the adjoint and the check are those of the solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook as has_global_hooks

from ..adjoints.adjoint_state import AdjointState, AdjointStateOfBeta
from ..adjoints.backprop import differentiated_again
from ..adjoints.primals import Primals
from ..adjoints.problem import Outputs, Problem
from ..adjoints.reconstruction import Check
from ..adjoints.reversible import Noted, consumable, final_states, of_start
from ..adjoints.vjp import usable
from ..iteration.loop import iterate
from ..runtime.transforms import refuse_batched
from ..solution import Stats
from ..state.pair import Leaves, Pair
from .refusal import Refused

if TYPE_CHECKING:
    from .captured import Captured

ROUTE = "compiled: f and its product are a graph each"


class CompiledF:
    """f of one solve, and its vector-Jacobian product, as compiled graphs."""

    def __init__(self, found: Captured) -> None:
        """Start with the tensors that the graphs currently read."""
        self.graphs, self.outputs = found.graphs, found.outputs
        self.inputs: list[Any] = list(found.inputs)
        strides = found.graphs.strides
        rows = enumerate(found.state)
        self.state = [(leaf, at, strides[at]) for leaf, at in rows if at is not None]
        self.arguments, self.others = found.arguments, found.others
        self.whole = len(found.state) == len(self.state) == 1

    def closure(self) -> list[Tensor]:
        """What f reads besides its arguments."""
        return [self.inputs[i] for i in self.others]

    def forget(self) -> None:
        """Release all tensors: autograd keeps them."""
        self.inputs = [None] * len(self.inputs)

    def recall(self, arguments: Sequence[Tensor], closure: Sequence[Tensor]) -> list[Any]:
        """The inputs, from what autograd kept; None for the leaves of the state."""
        inputs: list[Any] = [None] * len(self.inputs)
        for at, t in zip(self.arguments, arguments, strict=True):
            if at is not None:
                inputs[at] = t
        for at, t in zip(self.others, closure, strict=True):
            inputs[at] = t
        return inputs

    def run(self, inputs: Sequence[Any], leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the graph returns for these leaves and inputs."""
        inputs = [*inputs]
        for leaf, at, strides in self.state:
            t = leaves[leaf]
            inputs[at] = t if t.stride() == strides else laid_out(t, strides)
        return self.graphs.forward(inputs)

    def values(self, ends: Sequence[Tensor]) -> Leaves:
        """The leaves of f in what the graph returned."""
        return [ends[i] for i in self.outputs]


def laid_out(t: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The tensor in the memory layout that a graph was made for."""
    if t.stride() == strides:
        return t
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)


class CompiledVJPs:
    """Vector-Jacobian products of f, and the gradient sums of its other inputs."""

    def __init__(self, f: CompiledF, inputs: list[Any]) -> None:
        """`inputs` are those of ``recall``."""
        from .graphs import empty_sum

        self.f, self.inputs = f, inputs
        self.sums = [empty_sum(inputs[i]).zero_() for i in f.graphs.summed]

    def __call__(self, leaves: Sequence[Tensor], seed: Sequence[Tensor]) -> tuple[Leaves, Leaves]:
        """f at the given leaves, and the product of `seed` with its Jacobian."""
        f, graphs = self.f, self.f.graphs
        ends = f.run(self.inputs, leaves)
        given = [*ends[graphs.outputs :]]
        cotangents = seed if len(seed) == 1 else self._by_output(seed)
        for t, strides in zip(cotangents, graphs.cotangents, strict=True):
            given.append(t if t.stride() == strides else laid_out(t, strides))
        given += self.sums
        grads = graphs.backward(given)
        self.sums = [grads[i] for i in graphs.summed]
        values = f.values(ends)
        if f.whole:  # a state of one leaf, which f reads
            return values, [usable(grads[f.state[0][1]], values[0], seed[0])]
        products: list[Tensor | None] = [None] * len(values)
        for leaf, at, _ in f.state:
            products[leaf] = grads[at]
        parts = zip(products, values, strict=True)
        return values, [usable(product, value, *seed) for product, value in parts]

    def _by_output(self, seed: Sequence[Tensor]) -> list[Tensor]:
        """In the order of the graph's outputs, where one output may serve several leaves."""
        found: dict[int, Tensor] = {}
        for i, s in zip(self.f.outputs, seed, strict=True):
            found[i] = found[i] + s if i in found else s
        return [found[i] for i in range(self.f.graphs.outputs)]

    def gradients(self) -> dict[int, Tensor]:
        """The sums by input, in the inputs' dtypes."""
        rows = zip(self.f.graphs.summed, self.sums, strict=True)
        return {i: total.to(self.inputs[i].dtype) for i, total in rows}


def solve_by_graphs(problem: Problem, given: dict[str, Any]) -> tuple[Outputs | None, str]:
    """The solve and its route; None and the reason if f cannot be two graphs.

    ValueError instead if compile=True was given.
    """
    try:
        _check(problem, given)
        from .captured import captured

        f = CompiledF(captured(problem, anew=given["compile"] is True))
    except Refused as reason:
        if given["compile"] is True:
            raise ValueError(
                "compile: expected a solve that can run with two graphs of f, got one that cannot: "
                f"{reason}; pass compile='auto' or False, which run f uncompiled"
            ) from reason
        return None, f"solver: {reason}"
    return solve_compiled(problem, f), ROUTE


_ONLY = {"accumulate": "float32", "store_last": 0, "has_aux": False, "pass_step": False}
"""Options for which graphs accept a single value."""


def _check(problem: Problem, given: dict[str, Any]) -> None:
    """Refused for whatever graphs do not support, independent of f."""
    if problem.adjoint.name != "reversible":
        raise Refused(f"they support only adjoint='reversible', got {problem.adjoint.name!r}")
    for name, value in _ONLY.items():
        if given[name] != value:
            raise Refused(f"they support only {name}={value!r}, got {given[name]!r}")
    if problem.evaluation.transformed:
        raise Refused("they do not support torch.func transforms")
    if problem.evaluation.weights:
        raise Refused("f computes weights before each call, as torch.nn.utils.weight_norm does")
    if problem.evaluation.modules and has_global_hooks():
        raise Refused("hooks of all modules are registered, which no guard of a graph looks at")
    if torch._C._len_torch_dispatch_stack() > 0:
        raise Refused("a mode that observes operations is active, which does not see inside them")
    if torch.is_inference_mode_enabled():
        raise Refused("they are made for training, and not in inference mode; use torch.no_grad()")


def solve_compiled(problem: Problem, f: CompiledF) -> Outputs:
    """Run a solve with the graphs of f."""
    from .captured import as_state

    grad = torch.is_grad_enabled()
    start = [as_state(leaf.detach()) for leaf in problem.z0]

    def evaluate(k: int, leaves: Sequence[Tensor]) -> Leaves:
        return f.values(f.run(f.inputs, leaves))

    with torch.no_grad():
        first = evaluate(0, start)
        problem.mapping.check(first)
        pair = problem.pair(first, keep=grad)
        noted = Noted(problem, pair)
        run = problem.schedule, problem.stopping, noted.after_step
        steps = iterate(pair, first, evaluate, *run)
        z, y = pair.outputs()
    stats = problem.stats(pair, steps)
    stats.route = ROUTE
    outputs = [*z, *y, *(leaf for step in problem.save_at for leaf in noted.saved[step])]
    problem.check_range(pair, stats, outputs)
    inputs = Primals.of(problem, f.closure())
    f.forget()
    if grad and any(tensor.requires_grad for tensor in inputs.all()):
        walk = _Walk(problem.without_tensors(), f, pair, steps, stats, inputs.counts())
        states = [*noted.boundary, *pair.saved_tensors()]
        outputs = list(_Compiled.apply(walk, tuple(outputs), states, *inputs.all()))
        pair.release()
    count = len(problem.z0)
    parts = [outputs[i : i + count] for i in range(0, len(outputs), count)]
    return Outputs(parts[0], parts[1], parts[2:], stats)


@dataclass(eq=False, repr=False)
class _Walk:
    """What the backward pass needs besides the tensors that autograd keeps."""

    problem: Problem
    f: CompiledF
    pair: Pair
    steps: int
    stats: Stats
    counts: list[int]  # of each kind of input


class _Compiled(torch.autograd.Function):
    """The solve as one node. Its inputs: z0, y0, beta, the arguments of f, what else f reads."""

    @staticmethod
    def forward(
        ctx: Any, walk: _Walk, outputs: tuple[Tensor, ...], states: list[Tensor], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.walk, ctx.given = walk, len(inputs)
        ctx.save_for_backward(*inputs, *states)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        walk: _Walk = ctx.walk
        refuse_batched(grads)
        saved = ctx.saved_tensors  # raises if one was changed in place since
        inputs = Primals.split(saved[: ctx.given], walk.counts)
        if torch.is_grad_enabled():
            wanted = Primals.split(ctx.needs_input_grad[3:], walk.counts)
            leaves, first = len(inputs.z0), walk.problem.first_step
            ends = final_states(saved[ctx.given :], leaves, first)
            result = differentiated_again(walk.problem, walk.steps, inputs, wanted, grads, ends)
        else:
            result = _walk_back(walk, inputs, saved[ctx.given :], grads)
        return (None, None, None, *result.all())


def _walk_back(
    walk: _Walk,
    inputs: Primals[Tensor],
    states: Sequence[Tensor],
    grads: Sequence[Tensor | None],
) -> Primals[Tensor | None]:
    """The gradients of the inputs, with one evaluation of f per half step."""
    from .captured import as_state

    problem, f, leaves, first = walk.problem, walk.f, len(inputs.z0), walk.problem.first_step
    groups = [grads[i : i + leaves] for i in range(0, len(grads), leaves)]
    recalled = f.recall(inputs.arguments, inputs.closure)
    vjps = CompiledVJPs(f, recalled)
    boundary = list(states[: 2 * leaves]) if first else []
    pair = walk.pair.from_saved(consumable(states[len(boundary) :], 2 * leaves))
    check = Check(problem, pair)
    injected = dict(zip(problem.save_at, groups[2:], strict=True))
    adjoint = (AdjointStateOfBeta if inputs.beta else AdjointState)(pair, *groups[:2])
    start = [as_state(leaf.detach()) for leaf in inputs.z0]
    adjoint.begin(walk.steps - 1)
    for n in reversed(range(first, walk.steps)):
        if n + 1 in injected:
            adjoint.inject(n, injected[n + 1])
        value, product = vjps(pair.read_y, adjoint.seed)
        adjoint.after_y(n, value, product)
        value, product = vjps(pair.read_z if n else start, adjoint.seed)
        adjoint.after_z(n, value, product, joined=n == 0 and not inputs.y0)
    sums = vjps.gradients()
    beta = adjoint.grad_beta if isinstance(adjoint, AdjointStateOfBeta) else None
    result: Primals[Tensor | None] = Primals(
        z0=of_start(adjoint.grad_z, inputs.z0, first),
        y0=of_start(adjoint.grad_y, inputs.y0, first),
        beta=[None if beta is None else beta.to(b.dtype) for b in inputs.beta],
        arguments=[None if at is None else sums.get(at) for at in f.arguments],
        closure=[sums.get(at) for at in f.others],
    )
    if first:
        y_start, z_start = boundary[:leaves], boundary[leaves:]
    else:
        z_start = pair.encode(inputs.z0)
        y_start = pair.encode(inputs.y0) if inputs.y0 else z_start
    check.after(pair, z_start, y_start, walk.steps - first, walk.stats, result.tensors())
    return result
