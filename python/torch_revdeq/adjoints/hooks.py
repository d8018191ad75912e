"""``adjoint="hooks"``: autograd's own graph, without its saved tensors.

The graph of all half steps is kept, but its saved tensors are dropped, and recomputed in the
backward pass by evaluating f at the reconstructed state. Gradients flow through autograd's graph
itself, so whatever works with autograd works here: closures over leaf and non-leaf tensors, and
modules that exchange their parameters around each call, as FSDP2 does. The number of nodes grows
with the number of steps; the tensors do not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..evaluation.adjoint import MOST, Adjoint
from ..evaluation.auxiliary import AuxiliaryGradients, collecting, other_aux
from ..evaluation.closure import now
from ..evaluation.effects.naming import name_of
from ..evaluation.effects.standing import is_computed, leaf_again
from ..evaluation.marks import NOISE
from ..iteration.loop import iterate
from ..runtime.deferred import report_check
from ..runtime.transforms import outside_batches
from ..solution import Stats
from ..state.pair import Pair
from .backprop import truncated
from .checkpointed_graphs import Form, Saves, changed_in_place, saved_others
from .frozen import Frozen, frozen_between
from .gradient_graph import GradientGraph, attached, begun
from .problem import Outputs, Problem
from .reconstruction import Check
from .same_operations import Operations

Saved = tuple[int, int]
"""The half step, and the number of a tensor that autograd saved in it."""


class Hooks(Adjoint):
    """Reversible inside autograd's own graph, whose saved tensors are recomputed."""

    name = "hooks"
    takes = MOST
    fills_saved = takes_sharded = True

    def solve(self, problem: Problem) -> Outputs:
        """See ``solve_hooks``."""
        return solve_hooks(problem)


def solve_hooks(problem: Problem) -> Outputs:
    """Run a solve whose graph recomputes its saved tensors."""
    learned = problem.schedule.tensor
    if learned is not None and learned.requires_grad and not problem.exact:
        raise ValueError(
            "adjoint: expected 'reversible' or 'backprop' for a learnable beta with a float "
            "state, got 'hooks'; choose one of them"
        )
    again = _Recomputation(problem)
    with problem.evaluation.forward(replayed=True):
        cut = problem.first_step
        auxiliary = problem.auxiliary(marked=True)
        evaluate = collecting(truncated(again.evaluate, again.plain, cut), auxiliary)
        start = begun(problem.z0, cut)
        first = evaluate(0, attached(start, problem.z0))
        # Each half step has its own copies for f, which may keep them: a solve inside f does.
        pair = problem.pair([value.detach() for value in first], keep=True, private=True)
        y = start if problem.y0 is None else begun(problem.y0, cut)
        options = {"first": cut, "save_at": problem.save_at}
        nodes = GradientGraph(pair, y, start, second=not problem.exact, **options)
        run = problem.schedule, problem.stopping, again.after_step(pair)
        steps = iterate(nodes, first, evaluate, *run)
        z_leaves, y_leaves = pair.outputs()
        aux = [] if auxiliary is None else auxiliary.result()
        if auxiliary is not None and auxiliary.marks:
            noise = 0.0 if problem.exact else NOISE
            again.aux = AuxiliaryGradients(auxiliary.how, 2 * steps, [], auxiliary.marks, noise)
    stats = problem.stats(pair, steps)
    saved = [nodes.saved[step] for step in problem.save_at]
    beside = (leaf.detach() for leaves in (*saved, aux) for leaf in leaves)
    outputs = [*z_leaves, *y_leaves, *beside]
    problem.check_range(pair, stats, outputs)
    again.finish(pair, steps, stats)
    z, y = attached(nodes.z, z_leaves), attached(nodes.y, y_leaves)
    problem.spoil_gradients(pair, [*z, *y, *(leaf for leaves in saved for leaf in leaves), *aux])
    return Outputs(z, y, saved, stats, aux)


class _Recomputation:
    """The saved tensors of a solve, by half step: counted in the forward pass, then recomputed."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.saved: dict[int, list[Form]] = {}
        self.aux: AuxiliaryGradients | None = None  # checks that f returns the same aux again
        # Whether the state that f read required grad, and was computed.
        self.kinds: dict[int, list[tuple[bool, bool]]] = {}
        rows = ((t, t.requires_grad, is_computed(t)) for t in problem.tensors)
        self.arguments = [leaf_again(t, needs=needs, computed=made) for t, needs, made in rows]
        self.watched: dict[int, tuple[weakref.ref[Tensor], int, bool]] = {}
        parameters = [p for m in problem.evaluation.modules for p in m._parameters.values()]
        for tensor in (*problem.z0, *(problem.y0 or ()), *self.arguments, *parameters):
            if tensor is not None:
                self._watch(tensor)
        self.frozen = Frozen(problem.evaluation, ())
        self.operations = Operations(problem.evaluation)
        self.mark = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        self.boundary: tuple[list[Tensor], list[Tensor]] | None = None
        self.task: int | None = None
        self.cache: dict[Saved, Tensor | None] = {}  # None where f changed it afterwards
        self.next = -1
        # What the running evaluation has saved: f may differentiate inside itself.
        self.running: tuple[int, list[Tensor]] | None = None

    def evaluate(self, k: int, leaves: Sequence[Tensor]) -> list[Tensor]:
        """f in half step k, in autograd's graph, without the tensors that it saves."""
        forms: list[Form] = []
        self.saved[k] = forms
        self.kinds[k] = [(leaf.requires_grad, is_computed(leaf)) for leaf in leaves]
        running: list[Tensor] = []

        def pack(tensor: Tensor) -> Saved:
            forms.append((tensor.shape, tensor.dtype))
            running.append(tensor)
            made = tensor.grad_fn
            if tensor.requires_grad and (made is None or made._sequence_nr() < self.mark):
                self._watch(tensor)  # a leaf, or a tensor computed outside f
            return k, len(forms) - 1

        self.running = k, running
        since = now()
        try:
            with saved_tensors_hooks(pack, self.unpack):
                out = self.problem.evaluation(k, leaves, self.problem.tensors)
        finally:
            self.running = None
            running.clear()  # autograd's graph holds ``pack``
        self.operations.note(k, out, since, [*leaves, *self.problem.tensors])
        return out

    def plain(self, k: int, leaves: Sequence[Tensor]) -> list[Tensor]:
        """f in half step k."""
        return self.problem.evaluation(k, leaves, self.problem.tensors)

    def after_step(self, pair: Pair) -> Callable[[int], None]:
        """Copies the pair at the first step that is differentiated, where reconstruction ends."""

        def note(steps: int) -> None:
            if steps == self.problem.first_step:
                self.boundary = [leaf.clone() for leaf in pair.z], [leaf.clone() for leaf in pair.y]

        return note

    def finish(self, pair: Pair, steps: int, stats: Stats) -> None:
        """After the forward pass: keep the final state."""
        self.states = pair.saved_tensors()
        self.leaves = len(pair.y)
        pair.release()
        self.pair, self.steps, self.stats = pair, steps, stats

    def unpack(self, saved: Saved) -> Tensor:
        """A tensor that autograd saved in the forward pass."""
        if self.running is not None:
            k, running = self.running
            if saved[0] != k:
                raise saved_others()
            return running[saved[1]].detach()
        task = torch._C._current_graph_task_id()
        if task != self.task or saved not in self.cache:
            with outside_batches():
                self._reach(saved, task)
        tensor = self.cache.pop(saved)
        if tensor is None:
            raise changed_in_place()
        return tensor

    def _reach(self, saved: Saved, task: int) -> None:
        """Reconstruct down to the half step that saved it."""
        if task != self.task or saved[0] > self.next:
            self._begin(task)
        while saved not in self.cache and self.next >= 2 * self.problem.first_step:
            self._recompute(self.next)
        if saved not in self.cache:
            raise saved_others()

    def _watch(self, tensor: Tensor) -> None:
        """Remember a tensor's version and requires_grad, to detect a change."""
        if id(tensor) not in self.watched:
            known = weakref.ref(tensor), tensor._version, tensor.requires_grad
            self.watched[id(tensor)] = known

    def _begin(self, task: int) -> None:
        for ref, version, requires_grad in self.watched.values():
            tensor = ref()
            if tensor is not None and tensor._version != version:
                name = name_of(tensor, self.problem.evaluation.modules)
                raise RuntimeError(
                    "solve: one of the variables needed for gradient computation has been modified "
                    "by an inplace operation: "
                    f"{name or 'the initial state, an argument or a tensor that f closes over'}; "
                    "change it (as optimizer.step() does) after backward()"
                )
            if tensor is not None and tensor.requires_grad != requires_grad:
                raise frozen_between(name_of(tensor, self.problem.evaluation.modules))
        self.task, self.cache, self.next = task, {}, 2 * self.steps - 1
        pairs = 2 * self.leaves
        states = [state.clone() for state in self.states[:pairs]] + self.states[pairs:]
        with torch.no_grad():
            self.walk = self.pair.from_saved(states)
            self.check = Check(self.problem, self.walk)
        engine = torch.autograd.Variable._execution_engine
        engine.queue_callback(partial(self._end, task))

    def _end(self, task: int) -> None:
        """After a backward pass: continue to the initial state and check it.

        Autograd requests saved tensors only where it needs them. The first half steps may have
        saved nothing that this gradient needs, but only the initial state shows whether the states
        of the others were right.
        """
        if task != self.task:
            return
        if self.check.enabled or self.aux is not None:
            with outside_batches():
                while self.next >= 2 * self.problem.first_step:
                    self._recompute(self.next)
        self.cache.clear()

    def _recompute(self, k: int) -> None:
        """Evaluate f in half step k, collect what it saves, and reverse the half step."""
        n, at_y = divmod(k, 2)
        for stale in [key for key in self.cache if key[0] > k + 1]:
            del self.cache[stale]
        z = self.walk.read_z if k else self.problem.z0
        found = Saves()
        frozen = self.frozen.changed()
        with self.problem.evaluation.replay(()), torch.enable_grad():
            rows = zip(self.walk.read_y if at_y else z, self.kinds[k], strict=True)
            state = [leaf_again(t, needs=needs, computed=made) for t, (needs, made) in rows]
            since = now()
            with found:
                out = self.problem.evaluation(k, state, self.arguments)
            tensors = found.take()  # before buffers are put back
        if found.forms != self.saved[k]:
            raise frozen or saved_others()
        self.operations.check(k, out, since, frozen)
        for number, tensor in enumerate(tensors):
            self.cache[k, number] = tensor
        if self.aux is not None:
            self.aux.check(k, out[self.leaves :])
        with torch.no_grad():
            values = [value.detach() for value in out[: self.leaves]]
            (self.walk.invert_z if at_y else self.walk.invert_y)(n, values)
            self.next = k - 1
            if k == 2 * self.problem.first_step:
                self._compare_with_start()

    def _compare_with_start(self) -> None:
        """Check the initial state. If that fails on a device, saves not yet used become NaN."""
        z0, y0 = self.problem.z0, self.problem.y0 or self.problem.z0
        start = self.boundary or (self.walk.encode(z0), self.walk.encode(y0))
        steps = self.steps - self.problem.first_step
        outcomes = [self.check.after(self.walk, *start, steps, self.stats)]
        if self.aux is not None and self.aux.failed is not None:
            other = report_check(self.aux.failed, other_aux, ())
            self.stats._pending += [] if other is None else [other]
            outcomes.append(other)
        for failed in [pending.failed for pending in outcomes if pending is not None]:
            for key, tensor in self.cache.items():
                if tensor is not None and (tensor.is_floating_point() or tensor.is_complex()):
                    # In new memory: it may be a parameter's.
                    self.cache[key] = torch.where(failed, float("nan"), tensor)
