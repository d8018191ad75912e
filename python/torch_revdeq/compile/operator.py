"""A solve as one operator of a compiled graph, forward and backward.

torch.compile sees only ``torch_revdeq::solve`` and ``torch_revdeq::solve_backward``, whatever the
number of steps. Inside them the solver and f run as in eager mode: compile f by itself
(``f.compile()``), and the solver calls the compiled f.

A graph holds only tensors and numbers, which are inputs of the operator if they may differ between
calls. Everything else in a call of ``solve`` is kept in a ``CallSite``, created while the graph is
traced. What one run saves for its backward pass is kept in a ``_SavedGraph``, which lives as long
as the tensor that refers to it (its ticket).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from functools import cache
from itertools import count, cycle
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.utils import _pytree as pytree

from revdeq_kernels.core.registration import register_fake

from ..adjoints.vjp import keeps_graph
from ..evaluation.auxiliary import Auxiliary, Reduction
from ..evaluation.boundary import CaptureError
from ..evaluation.closure import leaves_below
from ..evaluation.effects.attributes import Attributes
from ..evaluation.effects.holdings import search
from ..evaluation.effects.kept_state import KeptState
from ..evaluation.flat_function import FlatFunction
from ..evaluation.masked_hooks import hooks_masked
from ..evaluation.replay import AutocastState, autocast
from ..solution import Stats
from .breaks import SOLVER

_plans: weakref.WeakValueDictionary[int, CallSite] = weakref.WeakValueDictionary()
_records: weakref.WeakValueDictionary[int, _SavedGraph] = weakref.WeakValueDictionary()
_plan_numbers, _tickets = count(), count()


class CallSite:
    """The parts of one call of ``solve`` in a graph that are not tensors."""

    def __init__(self, owner: nn.Module, values: dict[str, Any], autocast: AutocastState) -> None:
        """Note f, or the layer that owns it, and the call; `values` come from ``_plan``."""
        self.owner = weakref.ref(owner)
        self.values, self.autocast = values, autocast
        self.start = pytree.tree_structure(values["z0"])
        self.call = pytree.tree_structure(values["call"])
        self.saves: int = values["saves"]
        self.aux: Reduction | None = values["aux"]
        self.aux_steps: int = values["steps"]  # for "stack"
        self.aux_tree: list[tuple[str, list[Any], list[int]]] = []  # see ``_draw``
        self.aux_leaves = 0
        # Of the last run. The graph always returns this one object.
        self.stats = Stats(0, state="", adjoint="", state_bytes=0)
        self.key = next(_plan_numbers)
        _plans[self.key] = self

    @property
    def f(self) -> nn.Module:
        """f as it is called: the compiled form, if it has one."""
        owner: Any = self.owner()
        assert owner is not None  # the graph's own guards hold it
        return owner.f if self.values["layer"] else owner

    def parameters(self) -> list[Tensor]:
        """The parameters of f that require grad."""
        return [p for p in self.f.parameters() if p.requires_grad]

    def run(
        self,
        z0: Sequence[Tensor],
        tensors: Sequence[Tensor],
        floats: Sequence[Tensor],
        ints: Sequence[int],
    ) -> list[Tensor]:
        """Solve with these tensors and numbers; returns the leaves of z, y and the saved states."""
        args, options = self._call(tensors, [number.item() for number in floats], ints)
        if self.values["inductor"]:
            options = {"compile": "auto", **options}
        f = self.f
        with autocast(self.autocast):
            start = pytree.tree_unflatten(z0, self.start)
            before = Attributes(f)
            if self.values["layer"]:
                owner: Any = self.owner()
                solution = owner.solve_from(start, tuple(args), options)
            else:
                solution = SOLVER[0](f, start, *args, **options)
        changed = before.changed()
        if changed is not None:
            raise RuntimeError(
                f"f: expected to write no attributes in a compiled graph, got a change of {changed}"
                ", which the rest of the graph does not see; return the value from f, "
                "fill what f keeps before the first compiled call, or compile f alone (f.compile())"
            )
        self.stats.__dict__ = solution.stats.__dict__  # shows what the backward pass notes, too
        parts = (solution.z, solution.y, *solution.saved)
        aux = [] if self.aux is None else self._note(solution.aux)
        return [*(leaf for part in parts for leaf in pytree.tree_leaves(part)), *aux]

    def aux_like(
        self, z0: Sequence[Tensor], tensors: Sequence[Tensor], ints: Sequence[int]
    ) -> list[Tensor]:
        """Tensors like those of aux, from one evaluation of f without data or side effects."""
        if self.aux is None:
            return []
        # Without the numbers: shapes and dtypes do not depend on them.
        args, options = self._call(tensors, [1.0] * len(self.values["leaves"]), ints)
        f, mode = self.f, detect_fake_mode([*z0, *tensors])
        flags = {"has_aux": True, "pass_step": options.get("pass_step", False)}
        mapping = FlatFunction(f._call_impl, z0, self.start, **flags)
        with ExitStack() as stack:
            stack.enter_context(KeptState(search((f,))).kept(every=True))
            stack.enter_context(torch.no_grad())
            stack.enter_context(autocast(self.autocast))
            if mode is not None:  # f's parameters have data
                stack.enter_context(patch.object(mode, "allow_non_fake_inputs", True))
            out = mapping(z0, mapping.take_args(tuple(args), options.get("kwargs")))
            auxiliary = Auxiliary(self.aux, len(z0))
            auxiliary.take(0, out)
            values = auxiliary.result()
        self._note(mapping.unflatten_aux(values))
        if self.aux == "stack":
            return [value.new_empty(2 * self.aux_steps, *value.shape[1:]) for value in values]
        return [torch.empty_like(value) for value in values]

    def _call(
        self, tensors: Sequence[Tensor], floats: Sequence[float], ints: Sequence[int]
    ) -> tuple[Any, Any]:
        """The arguments and options of the call, for these tensors and numbers."""
        given = {"tensor": tensors, "float": floats, "int": ints}
        leaves = [
            value if kind == "constant" else given[kind][place]
            for kind, place, value in self.values["leaves"]
        ]
        return pytree.tree_unflatten(leaves, self.call)

    def _note(self, aux: Any) -> list[Tensor]:
        """The leaves of aux; also notes its structure."""
        leaves, structure = pytree.tree_flatten(aux)
        self.aux_leaves, self.aux_tree = len(leaves), []
        _draw(pytree.tree_unflatten(list(range(len(leaves))), structure), self.aux_tree)
        return leaves


def _draw(form: Any, nodes: list[tuple[str, list[Any], list[int]]]) -> int:
    """Append a tree with numbered leaves as rows of kind, keys, children, for the compiler.

    Returns the number of its root, which comes after all its children.
    """
    if type(form) is dict:
        kind, keys, children = "dict", list(form), list(form.values())
    elif type(form) in (list, tuple):
        kind, keys, children = type(form).__name__, [], list(form)
    elif isinstance(form, int):
        nodes.append(("leaf", [], [form]))
        return len(nodes) - 1
    else:
        raise TypeError(
            "f: expected an aux of tensors, tuples, lists and dicts in a compiled graph, got "
            f"{type(form).__name__}; return a dict, or compile f alone (f.compile())"
        )
    rows = [_draw(child, nodes) for child in children]
    nodes.append((kind, keys, rows))
    return len(nodes) - 1


def node_of_aux(key: int, node: int) -> tuple[str, list[Any], list[int]]:
    """A row of the ``aux_tree`` of a plan."""
    return _plans[key].aux_tree[node]


class _SavedGraph(bytearray):
    """The autograd graph of one run. Its memory holds its ticket, a number to look it up by."""

    edges: list[torch.autograd.graph.GradientEdge | None]
    targets: list[Tensor]

    def keep(self, outputs: Sequence[Tensor], targets: list[Tensor]) -> None:
        """Keep the graph of the outputs, to differentiate with respect to the targets."""
        known = {id(t) for t in targets}
        for leaf in leaves_below(outputs):
            if id(leaf) not in known:
                raise CaptureError(
                    "f: expected to read its arguments and its own parameters inside "
                    f"torch.compile, got another tensor of shape {tuple(leaf.shape)} that requires "
                    "grad; make it a parameter of f or pass it as an argument, solve(f, z0, tensor)"
                )
        edge = torch.autograd.graph.get_gradient_edge
        self.edges = [edge(t) if t.requires_grad else None for t in outputs]
        self.targets = targets

    def ticket(self) -> Tensor:
        """The tensor that keeps this record alive."""
        ticket = torch.frombuffer(self, dtype=torch.int64).squeeze(0)
        number = next(_tickets)
        _records[number] = self
        return ticket.fill_(number)


# ---- when it runs ------------------------------------------------------------------------------


@cache
def _at_rest() -> tuple[Any, Any]:
    """The default dispatch state, read in a new thread.

    Inside an operator autograd's keys are masked, but the solve has to be differentiable there.
    """
    included = torch._C._dispatch_tls_local_include_set
    excluded = torch._C._dispatch_tls_local_exclude_set
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: (included(), excluded())).result()


def _solve(
    z0: list[Tensor],
    tensors: list[Tensor],
    floats: list[Tensor],
    ints: list[int],
    parameters: list[Tensor],
    plan: int,
    needs: list[bool],
    grad: bool,
) -> list[Tensor]:
    """The outputs, copies of all inputs except parameters if a gradient is wanted, the ticket.

    Copies, because the compiler may reuse the memory of an input after the operator has run.
    """
    chosen, record = _plans[plan], _SavedGraph(8)
    if not grad:
        # Inference mode counts no versions. Without it f is checked as in eager mode.
        inference = torch.is_inference_mode_enabled()
        rest = nullcontext() if inference else torch._C._ForceDispatchKeyGuard(*_at_rest())
        with rest, torch.no_grad():
            outputs = chosen.run(z0, tensors, floats, ints)
        return [*_outputs(chosen, outputs, z0), record.ticket()]
    kept = _fresh([*z0, *tensors]) if any(needs) or parameters else []
    read = kept or [*z0, *tensors]
    with torch._C._ForceDispatchKeyGuard(*_at_rest()), torch.enable_grad():
        read = [t.detach().requires_grad_(need) for t, need in zip(read, needs, strict=True)]
        outputs = chosen.run(read[: len(z0)], read[len(z0) :], floats, ints)
    if kept:
        wanted = [t for t, need in zip(read, needs, strict=True) if need]
        record.keep(outputs, [*wanted, *chosen.parameters()])
    return [*_outputs(chosen, outputs, z0), *kept, record.ticket()]


def _outputs(plan: CallSite, outputs: Sequence[Tensor], z0: Sequence[Tensor]) -> list[Tensor]:
    """The solve's outputs in the memory layout of z0, and aux in its own layout."""
    ends = len(outputs) - plan.aux_leaves
    return [*_fresh(outputs[:ends], cycle(z0)), *_fresh(outputs[ends:])]


def _solve_backward(
    grads: list[Tensor | None], ticket: Tensor, inputs: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    """The gradients of the inputs that need one, from the gradients of the outputs."""
    record = _records.get(int(ticket))
    if record is None:
        raise RuntimeError(
            "torch_revdeq::solve_backward: called outside its solve's autograd graph; "
            "differentiate the solve with backward() or torch.autograd.grad"
        )
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    rows = zip(record.edges, grads, strict=True)
    arrived = [(edge, grad) for edge, grad in rows if edge is not None and grad is not None]
    edges, cotangents = zip(*arrived, strict=True) if arrived else ((), ())
    with torch._C._ForceDispatchKeyGuard(*_at_rest()), hooks_masked(record.targets):
        found = torch.autograd.grad(
            edges, record.targets, cotangents, allow_unused=True, retain_graph=keeps_graph()
        )
    rows = zip(found, wanted, strict=True)
    return _fresh([torch.zeros_like(t) if g is None else g for g, t in rows], wanted)


def _fresh(values: Sequence[Tensor], like: Iterable[Tensor] | None = None) -> list[Tensor]:
    """The values in their own memory, in the layout that a compiler expects."""
    rows = zip(values, like or values, strict=False)
    return [torch.empty_like(t).copy_(value.detach()) for value, t in rows]


# ---- registrations for compilers and autograd ----------------------------------------------------


def _solve_fake(
    z0: list[Tensor],
    tensors: list[Tensor],
    floats: list[Tensor],
    ints: list[int],
    parameters: list[Tensor],
    plan: int,
    needs: list[bool],
    grad: bool,
) -> list[Tensor]:
    chosen = _plans[plan]
    outputs = [torch.empty_like(leaf) for _ in range(2 + chosen.saves) for leaf in z0]
    outputs += chosen.aux_like(z0, tensors, ints)
    inputs = [*z0, *tensors] if grad and (any(needs) or parameters) else []
    kept = [torch.empty_like(t) for t in inputs]
    return [*outputs, *kept, torch.empty((), dtype=torch.int64, device="cpu")]


def _solve_backward_fake(
    grads: list[Tensor | None], ticket: Tensor, inputs: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    return [torch.empty_like(t) for t, need in zip(inputs, needs, strict=True) if need]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    z0, tensors, floats, ints, parameters, plan, needs, _ = inputs
    ctx.counts = [len(part) for part in (z0, tensors, floats, parameters)]
    ctx.of_ints = None if ints else []  # an empty list passes for one of tensors
    ctx.needs = [*needs, *([True] * len(parameters))]
    ctx.outputs = len(z0) * (2 + _plans[plan].saves) + _plans[plan].aux_leaves
    ctx.save_for_backward(*output[ctx.outputs :], *parameters)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    starts, tensors, floats, parameters = ctx.counts
    *kept, ticket = ctx.saved_tensors[: len(ctx.saved_tensors) - parameters]
    inputs = [*kept, *ctx.saved_tensors[len(kept) + 1 :]]
    found = iter(
        torch.ops.torch_revdeq.solve_backward(grads[: ctx.outputs], ticket, inputs, ctx.needs)
    )
    every = iter([next(found) if need else None for need in ctx.needs])
    of_z0, of_tensors = ([next(every) for _ in range(n)] for n in (starts, tensors))
    return of_z0, of_tensors, [None] * floats, ctx.of_ints, list(every), None, None, None


_library = torch.library.Library("torch_revdeq", "DEF")
_library.define(
    "solve(Tensor[] z0, Tensor[] tensors, Tensor[] floats, SymInt[] ints, Tensor[] parameters, "
    "int plan, bool[] needs, bool grad) -> Tensor[]",
    # Must not be rerun or merged: f may draw random numbers, and each run has its ticket.
    tags=(torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag),
)
_library.define(
    "solve_backward(Tensor?[] grads, Tensor ticket, Tensor[] inputs, bool[] needs) -> Tensor[]",
    tags=(torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag),
)
_library.impl("solve", _solve, "CompositeExplicitAutograd")
_library.impl("solve_backward", _solve_backward, "CompositeExplicitAutograd")
register_fake("torch_revdeq::solve", _solve_fake, _library)
register_fake("torch_revdeq::solve_backward", _solve_backward_fake, _library)
torch.library.register_autograd(
    "torch_revdeq::solve", _backward, setup_context=_setup_context, lib=_library
)
