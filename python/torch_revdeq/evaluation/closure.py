"""Which tensors f reads that were not passed to it, found in autograd's graph of its evaluations.

A module's parameters and the leaves that a function closes over become inputs of the solver, so
that their gradients arrive where autograd expects them. They are found in the graph of each
evaluation in the forward pass: a list of parameters made beforehand would miss closures, and the
first evaluation alone would miss leaves that only a later step uses.

An evaluation must compute everything else that it reads. Autograd nodes older than the evaluation,
and leaves given to another evaluation, were kept by f or come from outside: their gradient would
end where the solver has cut the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import repeat
from typing import Any, NoReturn

import torch
from torch import Tensor

from .boundary import CaptureError, is_entered, is_guarded
from .graph_print import Print, print_of

_STATE = repeat(-1)
"""The key of the state's leaves only."""

_AccumulateGrad: type = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]
now = torch.autograd._get_sequence_nr  # type: ignore[attr-defined]
"""The number of the next node that autograd makes in this thread."""


class ClosureLeaves:
    """The leaves that require grad in the graphs of f, in the order in which they were found."""

    def __init__(
        self,
        known: Sequence[Tensor],
        held: Callable[[], str | None] = lambda: None,
        outside: Collection[Any] = (),
    ) -> None:
        """Start with none, before the first evaluation.

        Args:
            known: the tensors that f is given.
            held: the type name of an argument that is not a pytree, for a possible error.
            outside: nodes of tensors that f holds and no evaluation made. Each thread numbers its
                nodes separately, so nodes of another thread may look newer than they are.
        """
        self.outside = outside
        self.known = list(known)  # held, so that ids are not reused
        self.known_ids = {id(tensor): i for i, tensor in enumerate(known)}
        self.held = held
        self.leaves: list[Tensor] = []
        self._nodes: dict[Any, Tensor] = {}  # of leaves found so far
        self._twice: set[int] = set()  # ids of those that one evaluation reached by several edges
        self._keys: dict[Any, int] = {}  # of these nodes, as in the backward pass
        self.prints: list[Print] = []  # of every evaluation
        self._entered: set[Any] = set()  # nodes of known tensors that are not leaves
        self._enter(known)
        self._start = now()

    def add(self, read: Sequence[Tensor], outputs: Sequence[Tensor], since: int) -> None:
        """Search the graph of one evaluation.

        Args:
            read: the state it was given.
            outputs: what it returned.
            since: ``now()`` before it.
        """
        entry = read[0].grad_fn
        stops = self._entered if entry is None else {*self._entered, entry}
        ends, older, nodes, edges = ends_of(outputs, since, stops, self.outside)
        if older is not None:
            self._refuse(older)
        known = self._nodes
        for node in ends:
            if node not in known and node is not entry:
                self._meet(read, node)
        if len(ends) > 1 and len(set(ends)) < len(ends):
            counts = Counter(ends)
            self._twice |= {id(t) for node, t in known.items() if counts[node] > 1}
        self.prints.append(print_of(nodes, edges, [*map(self._keys.get, ends, _STATE)]))

    def _meet(self, read: Sequence[Tensor], node: Any) -> None:
        leaf = node.variable
        for tensor in read:
            if leaf is tensor:
                return
        if is_guarded(leaf):
            refuse_kept("it was given there")
        self._nodes[node] = leaf
        self._keys[node] = self.known_ids.get(id(leaf), id(leaf))
        if id(leaf) not in self.known_ids:
            self.leaves.append(leaf)

    def renew(self, known: Sequence[Tensor]) -> None:
        """Replace the tensors that f is given, so that ones it keeps from before are detected."""
        ids = {id(old): id(new) for old, new in zip(self.known, known, strict=True)}
        self._nodes = {node: t for node, t in self._nodes.items() if id(t) not in ids}
        self._twice = {ids.get(number, number) for number in self._twice}
        self.known = list(known)
        self.known_ids = {id(tensor): i for i, tensor in enumerate(known)}
        self._keys = {node: key for node, key in self._keys.items() if node in self._nodes}
        self._enter(known)

    def _enter(self, known: Sequence[Tensor]) -> None:
        made = {t.grad_fn: t for t in known if t.grad_fn is not None}
        self._entered = set(made)
        self._nodes |= made
        self._keys |= {node: self.known_ids[id(t)] for node, t in made.items()}

    def twice(self) -> list[Tensor]:
        """The leaves that one evaluation reached by several edges."""
        return [leaf for leaf in self._nodes.values() if id(leaf) in self._twice]

    def reached_twice(self, tensors: Sequence[Tensor]) -> list[bool]:
        """For each of the tensors, whether one evaluation of f reached it by several edges."""
        return [id(tensor) in self._twice for tensor in tensors]

    def _refuse(self, node: Any) -> NoReturn:
        made_here = node._sequence_nr() >= self._start and node not in self.outside
        if is_entered(node) or made_here:
            refuse_kept(where_made(node))
        held = self.held()
        passed = "" if held is None else f" ({held} {_NO_PYTREE})"
        raise CaptureError(
            "f: expected to read its arguments, and parameters or other leaves, got a tensor that "
            f"requires grad and was computed outside f (by {node.name()}), or kept by f since an "
            f"earlier solve; pass it as an argument, solve(f, z0, tensor){passed}, or choose "
            "adjoint='hooks', which supports closures over such tensors"
        )


_NO_PYTREE = (
    "is not a pytree, so its tensors are not passed with it: register a dataclass with "
    "torch.export.register_dataclass, another type with torch.utils._pytree.register_pytree_node, "
    "or pass a tuple or dict"
)


def where_made(node: Any) -> str:
    """How a tensor was made in another evaluation, for an error."""
    return "it was given there" if is_entered(node) else f"it was computed there by {node.name()}"


def refuse_kept(where: str) -> NoReturn:
    """Raise: f reads a tensor that it kept from another evaluation."""
    raise CaptureError(
        "f: expected to recompute what it reads in every evaluation, got a tensor that requires "
        f"grad and that it kept from an earlier one ({where}); compute it outside and pass it as "
        "an argument, solve(f, z0, tensor), keep it detached, or choose adjoint='backprop'"
    )


_TO_LEAF, _TO_NOTHING, _FURTHER = -2, -3, -4
"""For ``ends_of``: an edge to a leaf, one where no gradient goes, and a number of an output.

Not -1, which has the hash of -2.
"""


def ends_of(
    outputs: Sequence[Tensor],
    since: int,
    stops: Collection[Any] = (),
    outside: Collection[Any] = (),
) -> tuple[list[Any], Any, list[Any], list[int]]:
    """The leaf nodes below the outputs, one per edge; the first older node or None; f's graph.

    A node is older if it was made before `since`, is an entrance of another evaluation, or is in
    `outside`; the search ends at it. `stops` count as leaf nodes. f's graph is its nodes in search
    order, and its edges: from each output and from each node in turn, the place of the node below,
    or _TO_LEAF or _TO_NOTHING; behind it _FURTHER - n if it leads to the n-th output of that node.
    """
    ends: list[Any] = []
    nodes: list[Any] = []  # of f, each once; grows during the search
    edges: list[int] = []
    places: dict[Any, int] = {None: _TO_NOTHING}
    for output in outputs:
        node = output.grad_fn
        if node in stops:
            ends.append(node)
            edges.append(_TO_LEAF)
        elif node is not None:
            place = places.setdefault(node, len(nodes))
            if place == len(nodes):
                nodes.append(node)
            edges.append(place)
            if output.output_nr:
                edges.append(_FURTHER - output.output_nr)
        elif output.requires_grad:  # f returned a leaf unchanged
            ends.append(torch.autograd.graph.get_gradient_edge(output).node)
            edges.append(_TO_LEAF)
        else:
            edges.append(_TO_NOTHING)
    for node in nodes:
        older = node._sequence_nr() < since or (outside and node in outside)
        if older or (since and is_entered(node)):
            return ends, node, nodes, edges
        for below, number in node.next_functions:
            if type(below) is _AccumulateGrad or below in stops:
                ends.append(below)
                edges.append(_TO_LEAF)
                continue
            place = places.get(below)
            if place is None:
                places[below] = place = len(nodes)
                nodes.append(below)
            edges.append(place)
            if number:
                edges.append(_FURTHER - number)
    return ends, None, nodes, edges


def operations_of(outputs: Sequence[Tensor], since: int, given: Sequence[Tensor]) -> int | None:
    """The print of one evaluation's operations, from the tensors that it was `given`.

    None if it reads a computed tensor that it was not given, or if torch.jit optimized it.
    """
    stops = {t.grad_fn for t in given if t.grad_fn is not None}
    _, older, nodes, edges = ends_of(outputs, since, stops)
    if older is not None or _is_optimized(nodes):
        return None
    return print_of(nodes, edges, ())[0]


def leaves_below(outputs: Sequence[Tensor]) -> list[Tensor]:
    """All leaves that require grad in the graph of the outputs."""
    return list(_leaves(ends_of(outputs, 0)[0]).values())


def _leaves(ends: Sequence[Any]) -> dict[int, Tensor]:
    """The leaves of these nodes, by id."""
    leaves = [node.variable for node in ends]
    return {id(leaf): leaf for leaf in leaves}


class ReadAgain:
    """Checks that f, evaluated again, builds the same graph as in the forward pass.

    The reconstructed states do not show that: f may compute the same values and detach others, or
    read another leaf with the same values.
    """

    def __init__(
        self,
        given: Sequence[Tensor],
        closure: Sequence[Tensor],
        prints: Sequence[Print],
        name_of: Callable[[Tensor], str | None],
    ) -> None:
        """Note what f may read.

        Args:
            given: inputs of f now.
            closure: leaves it reads.
            prints: of the forward pass.
            name_of: where f's modules have a tensor, for the error.
        """
        self.given, self.closure, self.prints, self.name_of = given, closure, prints, name_of
        self.entered = {t.grad_fn: i for i, t in enumerate(given) if t.grad_fn is not None}
        self.places = {id(t): i for i, t in enumerate(given) if t.grad_fn is None}
        # Keyed by node, which identifies a tensor permanently: all known leaves except the states.
        self._keys: dict[Any, int] = dict(self.entered)

    def check(self, k: int, state: Sequence[Tensor], outputs: Sequence[Tensor], since: int) -> None:
        """Search the graph of half step k; CaptureError if it differs."""
        ends, older, nodes, edges = ends_of(outputs, since, self.entered)
        if older is not None:
            refuse_kept(where_made(older))
        known = self._keys
        keys = [known[end] if end in known else self._key(end, state) for end in ends]
        found = print_of(nodes, edges, keys)
        if found != self.prints[k]:
            rows = zip(ends, keys, strict=True)
            leaves = [end.variable for end, key in rows if key != -1 and end not in self.entered]
            if found[0] == self.prints[k][0] or not _is_optimized(nodes):
                self._explain(found, self.prints[k], leaves)

    def _key(self, node: Any, state: Sequence[Tensor]) -> int:
        """The key of a leaf that was not found before: -1 for a leaf of the state."""
        leaf = node.variable
        if any(leaf is tensor for tensor in state):
            return -1
        self._keys[node] = key = self.places.get(id(leaf), id(leaf))
        return key

    def _explain(self, found: Print, then: Print, leaves: Sequence[Tensor]) -> None:
        """Raise the error for a graph that differs, if it matters; `leaves` exclude the state's."""
        if any(map(is_guarded, leaves)):
            refuse_kept("it was given there")
        known = {*self.places, *map(id, self.closure)}
        others = [leaf for leaf in leaves if id(leaf) not in known]
        frozen = not all(leaf.requires_grad for leaf in self.closure)
        if found[0] != then[0] and (others or frozen):
            return  # parameters were frozen or unfrozen since, as autograd allows
        if found[0] == then[0]:
            name = next(filter(None, map(self.name_of, others)), "another leaf")
            raise CaptureError(
                f"f: expected to read the same tensors in both passes, got {name} in the backward "
                "pass instead of the one before, so the gradient would be wrong. If "
                "torch.func.functional_call replaces f's parameters, call it inside f and pass "
                "them: solve(lambda z, p, x: functional_call(cell, p, (z, x)), z0, p, x); or "
                "choose adjoint='backprop'"
            )
        raise other_operations()


class SameOperations:
    """The same check of the operations only, for an f that is given everything it may read."""

    def __init__(self, prints: Mapping[int, int]) -> None:
        """`prints`: of the forward pass, the first half of ``print_of``."""
        self.prints = prints

    def check(self, k: int, state: Sequence[Tensor], outputs: Sequence[Tensor], since: int) -> None:
        """Search the graph of half step k; CaptureError if it differs."""
        _, older, nodes, edges = ends_of(outputs, since)
        if older is not None:
            refuse_kept(where_made(older))
        if print_of(nodes, edges, ())[0] != self.prints.get(k) and not _is_optimized(nodes):
            raise other_operations()


def _is_optimized(nodes: Sequence[Any]) -> bool:
    """Whether torch.jit has optimized the graph, which it does after the first calls."""
    return any("torch::jit" in node.name() for node in nodes)


def other_operations() -> CaptureError:
    """The error if f ran other operations than in the forward pass."""
    return CaptureError(
        "f: expected to run the same operations in both passes, got others in the backward pass: "
        "a flag, a counter, a hook or a context (no_grad, a detach) changed in between; leave it "
        "unchanged until after backward(), pass it as an argument, or choose adjoint='backprop'"
    )


def check_kept(outputs: Sequence[Tensor], start: int, since: int, given: Sequence[Tensor]) -> None:
    """CaptureError if an evaluation reads a tensor of one made between `start` and `since`.

    For adjoints that run in autograd's own graph, where f may close over earlier results. The graph
    upstream of the tensors that f was `given` is not searched.
    """
    above = {t.grad_fn for t in given if t.grad_fn is not None}
    nodes: list[Any] = [o.grad_fn for o in outputs if o.grad_fn is not None]
    nodes = [node for node in nodes if node not in above]
    seen = {*nodes, *above}
    for node in nodes:
        if start <= node._sequence_nr() < since:
            refuse_kept(where_made(node))
        if node._sequence_nr() < start:
            continue
        for below, _ in node.next_functions:
            if type(below) is _AccumulateGrad and is_guarded(below.variable):
                refuse_kept("it was given there")
            if below is not None and below not in seen:
                seen.add(below)
                nodes.append(below)
