"""The definition of the gradient: autograd over the solve, with everything stored.

``adjoint="backprop"`` and ``"checkpoint"``, and derivatives of derivatives. A float state is plain
differentiable PyTorch. An exact state is stepped by the ops, and nodes beside it carry the gradient:
that of the real numbers which it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .carry import beta_part
from .conditions import Evaluate
from .iteration import Stopping, iterate
from .problem import Outputs, Problem
from .states import Leaves, Pair

T = TypeVar("T")


@dataclass
class Inputs(Generic[T]):
    """Something for every input of a solve: the tensor, whether its gradient is wanted, or that."""

    z0: Sequence[T]
    y0: Sequence[T]
    beta: Sequence[T]
    arguments: Sequence[T]
    captures: Sequence[T]

    @staticmethod
    def of(problem: Problem, captures: Sequence[Tensor]) -> Inputs[Tensor]:
        """The tensors of a problem, and those that f was found to close over."""
        beta = problem.schedule.tensor
        learned = [] if beta is None else [beta]
        return Inputs(problem.z0, problem.y0 or [], learned, problem.tensors, captures)

    @staticmethod
    def split(flat: Sequence[T], counts: Sequence[int]) -> Inputs[T]:
        """The inverse of ``all``."""
        parts, at = [], 0
        for count in counts:
            parts.append(flat[at : at + count])
            at += count
        return Inputs(*parts)

    def counts(self) -> list[int]:
        """How many there are of each."""
        return [len(part) for part in self._parts()]

    def all(self) -> list[T]:
        """One after the other."""
        return [value for part in self._parts() for value in part]

    def tensors(self) -> list[Tensor]:
        """Those that are tensors."""
        return [value for value in self.all() if isinstance(value, Tensor)]

    def _parts(self) -> list[Sequence[T]]:
        return [self.z0, self.y0, self.beta, self.arguments, self.captures]


def solve_stored(problem: Problem) -> Outputs:
    """z, y and the statistics of a solve that autograd differentiates by itself."""
    with problem.evaluation.forward(replayed=problem.adjoint == "checkpoint"):
        run = _run_exact if problem.exact else _run_float
        z, y, pair, steps = run(problem, problem.stopping)
    stats = problem.stats(pair, steps)
    problem.check_range(pair, stats, [leaf.detach() for leaf in (*z, *y)])
    return z, y, stats


def _evaluate(problem: Problem) -> Evaluate:
    """f with its graph; under a checkpoint its activations are computed again when needed."""
    evaluation, tensors = problem.evaluation, problem.tensors

    def stored(k: int, leaves: Sequence[Tensor]) -> list[Tensor]:
        return evaluation(k, leaves, tensors)

    def checkpointed(k: int, leaves: Sequence[Tensor]) -> list[Tensor]:
        def half_step(*inputs: Tensor) -> list[Tensor]:
            return evaluation(k, inputs[: len(leaves)], inputs[len(leaves) :])

        # Random numbers and buffers come again by ``Evaluation``, not by the checkpoint.
        return checkpoint(
            half_step,
            *leaves,
            *tensors,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), evaluation.replay(())),
        )

    return checkpointed if problem.adjoint == "checkpoint" else stored


# ---- float states ----------------------------------------------------------------------------


class _FloatNodes:
    """The pair as differentiable tensors: the definition of ``FloatPair``."""

    def __init__(self, problem: Problem) -> None:
        layout = problem.layout()
        self.layout, self.schedule = layout, problem.schedule
        self.z = [leaf.to(kept) for leaf, kept in zip(problem.z0, layout.kept, strict=True)]
        self.y = self.z
        if problem.y0 is not None:
            self.y = [leaf.to(kept) for leaf, kept in zip(problem.y0, layout.kept, strict=True)]

    @property
    def read_y(self) -> Leaves:
        return self.read(self.y)

    @property
    def read_z(self) -> Leaves:
        return self.read(self.z)

    def read(self, state: Leaves) -> Leaves:
        """What f reads: one node, so that all that f makes of it joins before it meets the carry."""
        return [_read(s, dtype) for s, dtype in zip(state, self.layout.read, strict=True)]

    def update_y(self, n: int, f: Leaves) -> None:
        self.y = self._updated(n, self.y, f)

    def update_z(self, n: int, f: Leaves) -> None:
        self.z = self._updated(n, self.z, f)

    def _updated(self, n: int, state: Leaves, f: Leaves) -> Leaves:
        beta = self.schedule.applied(n)
        return [updated(s, value, beta) for s, value in zip(state, f, strict=True)]


def updated(state: Tensor, f: Tensor, beta: float | Tensor) -> Tensor:
    """(1 - beta) state + beta f, rounded as ``update_`` rounds."""
    compute = torch.float64 if state.dtype == torch.float64 else torch.float32
    if isinstance(beta, Tensor):
        beta = beta.to(compute)
    return ((1.0 - beta) * state.to(compute) + beta * f.to(compute)).to(state.dtype)


def _read(state: Tensor, dtype: torch.dtype) -> Tensor:
    return state.view_as(state) if state.dtype == dtype else state.to(dtype)


def _run_float(problem: Problem, stopping: Stopping) -> tuple[Leaves, Leaves, Any, int]:
    evaluate = _evaluate(problem)
    first = evaluate(0, [leaf.view_as(leaf) for leaf in problem.z0])
    nodes = _FloatNodes(problem)
    steps = iterate(nodes, first, evaluate, problem.schedule, stopping)
    return nodes.read(nodes.z), nodes.read(nodes.y), nodes, steps


def differentiated_again(
    problem: Problem,
    steps: int,
    inputs: Inputs[Tensor],
    wanted: Inputs[bool],
    grads: Sequence[Tensor | None],
) -> Inputs[Tensor | None]:
    """The gradients of the inputs as differentiable tensors, at memory that grows with the steps."""
    if problem.exact:
        refuse_second_derivative()
    gate = _Gate()
    outer = inputs.all()[: len(inputs.all()) - len(inputs.captures)]
    cut = [_Cut.apply(gate, t) if t.is_floating_point() else t for t in outer]
    targets = [*cut, *inputs.captures]
    through = Inputs.split(targets, inputs.counts())
    again = replace(
        problem,
        z0=list(through.z0),
        y0=list(through.y0) or None,
        tensors=list(through.arguments),
        schedule=problem.schedule.again(steps, *through.beta),
        adjoint="backprop",
    )
    with problem.evaluation.replay(inputs.captures):
        z, y, _, _ = _run_float(again, Stopping(None, 1, None, again.z0[0].device))
        chosen = [i for i, want in enumerate(wanted.all()) if want and targets[i].requires_grad]
        pairs = [(o, g) for o, g in zip([*z, *y], grads, strict=True) if g is not None]
        found = torch.autograd.grad(
            [o for o, _ in pairs],
            [targets[i] for i in chosen],
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
    gate.open = True
    result: list[Tensor | None] = [None] * len(targets)
    for i, gradient in zip(chosen, found, strict=True):
        result[i] = gradient
    return Inputs.split(result, inputs.counts())


def refuse_second_derivative() -> NoReturn:
    """An exact state has a first derivative only."""
    raise RuntimeError(
        "solve: expected one derivative with state='exact', got create_graph=True, whose second "
        "derivative a fixed-point state does not have; choose state=torch.float32 or torch.float64"
    )


class _Gate:
    """Whether gradients pass a ``_Cut``."""

    open = False


class _Cut(torch.autograd.Function):
    """The identity; its gradient stops here until the gate is open.

    An argument may be a function of a parameter that f also reads. The first derivative must not
    run on through the argument, or that parameter would be counted twice; the second one must.
    """

    @staticmethod
    def forward(ctx: Any, gate: _Gate, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.gate = gate
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:  # type: ignore[override]
        return None, grad if ctx.gate.open else None


# ---- exact states ----------------------------------------------------------------------------


class Nodes:
    """A pair that the ops step in place, and nodes of autograd's graph that carry its gradient."""

    def __init__(self, pair: Pair, y: Leaves, z: Leaves, *, second: bool) -> None:
        """Carry the gradient from the given nodes on; `second`: let it be differentiated again."""
        self.pair, self.y, self.z, self.second = pair, y, z, second
        self.read_y: Leaves = []
        self.read_z: Leaves = []

    def update_y(self, n: int, f: Leaves) -> None:
        """y <- (1 - beta) y + beta f(z)."""
        before = self._before(self.pair.y)
        self.pair.update_y(n, [value.detach() for value in f])
        self.y = self._step(n, self.y, f, before)
        self.read_y = attached(self.y, self.pair.read_y)

    def update_z(self, n: int, f: Leaves) -> None:
        """z <- (1 - beta) z + beta f(y)."""
        before = self._before(self.pair.z)
        self.pair.update_z(n, [value.detach() for value in f])
        self.z = self._step(n, self.z, f, before)
        self.read_z = attached(self.z, self.pair.read_z)

    def _before(self, state: Leaves) -> list[Tensor | None]:
        beta = self.pair.schedule.tensor
        if beta is None or not beta.requires_grad:
            return [None] * len(state)
        dtypes = self.pair.layout.adjoint
        return [self.pair.value(s, dtype).clone() for s, dtype in zip(state, dtypes, strict=True)]

    def _step(self, n: int, nodes: Leaves, f: Leaves, before: list[Tensor | None]) -> Leaves:
        schedule = self.pair.schedule
        rows = zip(nodes, f, before, strict=True)
        step = schedule.applied(n), self.second
        return [_Step.apply(step, b, node, value, schedule.tensor) for node, value, b in rows]


def begun(leaves: Sequence[Tensor]) -> Leaves:
    """Nodes for the leaves of a start."""
    return [_Begin.apply(leaf) for leaf in leaves]


def attached(nodes: Leaves, values: Leaves) -> Leaves:
    """The values, with the gradient of the nodes."""
    return [_Attach.apply((value,), node) for node, value in zip(nodes, values, strict=True)]


def _carrier(like: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of this shape that takes no memory. Its value is never read."""
    return torch.full((), float("nan"), dtype=dtype, device=like.device).expand(like.shape)


class _Begin(torch.autograd.Function):
    """From a leaf of the start to its node: the gradient in the adjoint's dtype."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:  # type: ignore[override]
        ctx.dtype = leaf.dtype
        wide = torch.float64 if leaf.dtype == torch.float64 else torch.float32
        return _carrier(leaf, wide)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.to(ctx.dtype)


class _Attach(torch.autograd.Function):
    """A value that f reads or the caller gets, in place of the node that carries its gradient."""

    @staticmethod
    def forward(ctx: Any, value: tuple[Tensor], node: Tensor) -> Tensor:  # type: ignore[override]
        ctx.dtype = node.dtype
        return value[0].detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, grad.to(ctx.dtype)


class _Step(torch.autograd.Function):
    """The gradient of one half step: (1 - beta) grad to the state, beta grad to f."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        step: tuple[float | Tensor, bool],
        before: Tensor | None,
        node: Tensor,
        f: Tensor,
        beta: Tensor | None,
    ) -> Tensor:
        ctx.applied, ctx.second = step
        ctx.f = f.dtype
        ctx.set_materialize_grads(False)
        if before is not None:
            ctx.save_for_backward(before, f, beta)
        return _carrier(node, node.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad is None:
            return (None,) * 5
        if torch.is_grad_enabled() and not ctx.second:
            refuse_second_derivative()
        applied = ctx.applied
        learned = None
        if ctx.saved_tensors:
            before, f, beta = ctx.saved_tensors
            learned = beta_part(beta, grad, f, before).to(beta.dtype)
        return None, None, (1.0 - applied) * grad, (applied * grad).to(ctx.f), learned


def _run_exact(problem: Problem, stopping: Stopping) -> tuple[Leaves, Leaves, Pair, int]:
    evaluate = _evaluate(problem)
    start = begun(problem.z0)
    first = evaluate(0, attached(start, problem.z0))
    pair = problem.pair([value.detach() for value in first], keep=False, private=True)
    y = start if problem.y0 is None else begun(problem.y0)
    nodes = Nodes(pair, y, start, second=False)
    steps = iterate(nodes, first, evaluate, problem.schedule, stopping)
    return nodes.read_z, nodes.read_y, pair, steps
