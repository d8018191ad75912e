"""Evaluations of f in the backward pass, and their vector-Jacobian products.

One evaluation serves both the inverse of its half step and the product. The gradients of parameters
and arguments are summed over the half steps, in the order that autograd would use.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.nn.modules.module import _global_forward_pre_hooks as _before_modules
from torch.overrides import has_torch_function

from ..evaluation.auxiliary import AuxiliaryGradients
from ..evaluation.boundary import entered, guard, unguarded
from ..evaluation.closure import ReadAgain, SameOperations, now
from ..evaluation.replay import Evaluation
from ..runtime.scopes import scope
from .stored_graphs import StoredGraph

set_grad_enabled = torch._C._set_grad_enabled
"""Used without the context manager, which takes as long as a small f."""

_run_backward = Variable._execution_engine.run_backward

_HALF = (torch.bfloat16, torch.float16)


class VJPs:
    """Vector-Jacobian products of f, and the gradient sums of `targets`."""

    def __init__(
        self,
        evaluation: Evaluation,
        tensors: Sequence[Tensor],
        targets: Sequence[Tensor],
        reached_twice: Sequence[bool],
        *,
        accumulate_float32: bool,
        kept: dict[int, StoredGraph] | None = None,
        again: ReadAgain | SameOperations | None = None,
        auxiliary: AuxiliaryGradients | None = None,
    ) -> None:
        """Differentiate with respect to the state and to `targets`.

        Args:
            evaluation: f under the conditions of the forward pass.
            tensors: the tensors among f's arguments, detached.
            targets: the arguments and closed-over leaves whose gradients are wanted.
            reached_twice: for each target, whether one evaluation of f uses it more than once.
                Autograd adds such uses to the running sum one by one, so the current sum enters the
                engine with them, through an alias.
            accumulate_float32: sum 16-bit gradients in float32.
            kept: graphs of the forward pass, by half step, which need no evaluation. They are
                removed as they are used, unless autograd keeps its graph.
            again: checks that f builds the same graphs as in the forward pass.
            auxiliary: the gradients of aux.
        """
        self.evaluation, self.tensors, self.targets = evaluation, tensors, targets
        dtypes = [
            torch.float32 if accumulate_float32 and t.dtype in _HALF else t.dtype for t in targets
        ]
        self.dtypes = dtypes
        same = [dtype == t.dtype for dtype, t in zip(dtypes, targets, strict=True)]
        self.seeded = [i for i, twice in enumerate(reached_twice) if twice and same[i]]
        self.sums: list[Tensor | None] = [None] * len(targets)
        self.plain = [False] * len(targets)  # whether a sum is added to in place
        self.kept = {} if kept is None else kept
        self.again, self.auxiliary = again, auxiliary
        self.aliased = is_asked_for_leaves()
        self.bare = isinstance(evaluation, Evaluation) and evaluation.bare

    def __call__(
        self, k: int, leaves: Sequence[Tensor], seed: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """f in half step k at the given leaves, and the product of `seed` with its Jacobian."""
        keep = False
        graph: StoredGraph | None = None
        if self.kept:
            keep = keeps_graph()
            graph = self.kept.get(k) if keep else self.kept.pop(k, None)
        if graph is None:
            graph = self._evaluate(k, leaves)
        else:
            unguarded(graph.state)
            # The graph is freed as a whole afterwards, so that parts of it that f kept still raise
            # a clear error if a gradient reaches them.
            keep = True
        if len(graph.out) == 1 and not self.seeded and graph.out[0].requires_grad:
            return self._alone(graph, seed[0], keep=keep)
        return self._several(graph, seed, keep=keep)

    def _alone(
        self, graph: StoredGraph, seed: Tensor, *, keep: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The common case: a state of one leaf, and no aux."""
        state, out = graph.state[0], graph.out[0]
        wanted = (state, *self.targets)
        product, *parts = engine_vjp((out,), wanted, (seed,), keep=keep, k=graph.k)
        guard(graph.state)
        if parts:
            self._add(parts, ())
        value = out.detach()
        return [value], [usable(product, value, seed)]

    def _several(
        self, graph: StoredGraph, seed: Sequence[Tensor], *, keep: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        state, out, k = graph.state, graph.out, graph.k
        count = len(state)
        values = [value.detach() for value in out[:count]]
        roots = [value for value in out[:count] if value.requires_grad]
        cotangents = [s for s, value in zip(seed, out, strict=False) if value.requires_grad]
        if self.auxiliary is not None:
            self.auxiliary.check(k, out[count:])
            # In the order in which autograd would reach the sums of a stored graph.
            rows = zip(out[count:], self.auxiliary.of(k), strict=True)
            pairs = [(value, g) for value, g in rows if g is not None and value.requires_grad]
            roots += [value for value, _ in reversed(pairs)]
            cotangents += [g for _, g in reversed(pairs)]
        if not roots:
            return values, [torch.zeros_like(value) for value in values]
        started = [
            i
            for i in self.seeded
            if self.sums[i] is not None and id(self.targets[i]) in graph.aliases
        ]
        roots += [graph.aliases[id(self.targets[i])] for i in started]
        cotangents += [self._sum(i) for i in started]
        grads = engine_vjp(roots, [*state, *self.targets], cotangents, keep=keep, k=k)
        guard(state)
        self._add(grads[count:], started)
        vjp = zip(grads[:count], values, strict=True)
        return values, [usable(product, value, *seed) for product, value in vjp]

    def _evaluate(self, k: int, leaves: Sequence[Tensor]) -> StoredGraph:
        set_grad_enabled(True)
        try:
            state = entered(leaves)
            since = now()
            read, given = state, self.tensors
            if self.aliased:
                read, given = as_read(state), as_read(given)
            out = self.evaluation(k, read, given)
            if self.again is not None:
                self.again.check(k, state, out, since)
                if self.bare:
                    self.again = None  # nothing can have changed but what is around f
            aliases: dict[int, Tensor] = {}
            if self.seeded:
                # Made after f, so that autograd visits them first: the sum so far, then f's parts.
                targets = [self.targets[i] for i in self.seeded if self.sums[i] is not None]
                aliases = {id(t): t.view_as(t) for t in targets}
            return StoredGraph(k, state, out, aliases)
        finally:
            set_grad_enabled(False)

    def gradients(self) -> list[Tensor | None]:
        """The sums, in the dtypes of the targets."""
        rows = zip(self.sums, self.targets, self.dtypes, strict=True)
        return [s if s is None or t.dtype == dtype else s.to(t.dtype) for s, t, dtype in rows]

    def _sum(self, i: int) -> Tensor:
        total = self.sums[i]
        assert total is not None
        return total

    def _add(self, grads: Sequence[Tensor | None], seeded: Collection[int]) -> None:
        sums: list[Tensor] = []
        parts: list[Tensor] = []
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            total = self.sums[i]
            if i in seeded:
                self.sums[i] = grad
                self.plain[i] = _is_plain(grad)
            elif total is None:
                # A copy: autograd may pass the seed itself through.
                self.sums[i] = total = grad.to(self.dtypes[i], copy=True)
                self.plain[i] = _is_plain(total)
            elif not (self.plain[i] and _is_plain(grad)):  # sparse, or a DTensor
                self.sums[i] = total = total + grad
                self.plain[i] = _is_plain(total)
            elif total.is_cpu:
                total.add_(grad)
            else:
                sums.append(total)
                parts.append(grad)
        if sums:  # launched together
            torch._foreach_add_(sums, parts)  # type: ignore[attr-defined]


def is_asked_for_leaves() -> bool:
    """Whether module hooks may query autograd's engine about the inputs of modules.

    Operation counters (FlopCounterMode) do, to learn whether a backward pass will reach them. For a
    leaf the engine can tell only in ``backward()``.
    """
    return bool(_before_modules) or torch._C._len_torch_dispatch_stack() > 0


def as_read(leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    """The leaves as f gets them: aliases if the engine will be queried about them."""
    if not is_asked_for_leaves():
        return leaves
    return [alias(leaf) if leaf.requires_grad else leaf for leaf in leaves]


def alias(tensor: Tensor) -> Tensor:
    """The same values as a separate node."""
    return tensor.view_as(tensor) if tensor.layout == torch.strided else tensor.clone()


def _of_half_step(*args: object, k: int | None = None, **options: object) -> str:
    return "backward" if k is None else f"half step {k}: product"


@scope(_of_half_step)
def engine_vjp(
    roots: Sequence[Tensor],
    wanted: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    keep: bool,
    k: int | None = None,
) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad(roots, wanted, cotangents, allow_unused=True, retain_graph=keep)``.

    For use inside a backward pass, by the same call into autograd's engine. torch's wrapper takes
    as long as the gradient of a small f and is not needed here: the running pass has given its
    context to the engine's threads, and the engine compares shapes itself. `k` is the half step,
    which names the profiler scope.
    """
    if has_torch_function((*roots, *wanted)):  # a subclass or mode that overrides operations
        return torch.autograd.grad(roots, wanted, cotangents, allow_unused=True, retain_graph=keep)
    # The last five: keep_graph, create_graph, inputs, allow_unreachable, accumulate_grad.
    return _run_backward(tuple(roots), tuple(cotangents), keep, False, tuple(wanted), True, False)


def keeps_graph() -> bool:
    """Whether the running backward pass retains its graph."""
    return torch._C._autograd._get_current_graph_task_keep_graph()  # type: ignore[attr-defined]


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.layout == torch.strided


def usable(product: Tensor | None, value: Tensor, *seeds: Tensor) -> Tensor:
    """The product as the passes need it: in f's dtype or the adjoint's, in its own memory."""
    if product is None:  # f does not depend on this leaf
        return torch.zeros_like(value)
    adjoint = torch.float64 if value.dtype == torch.float64 else torch.float32
    if product.dtype not in (value.dtype, adjoint):
        return product.to(adjoint)
    memory = product.untyped_storage().data_ptr()
    if any(memory == seed.untyped_storage().data_ptr() for seed in seeds):
        return product.clone()  # f passed the seed through; the pass overwrites all seeds
    return product
