"""Which tensors f reads that nobody passed to it, read off autograd's graph of its evaluations.

A module's parameters and the leaves that a function closes over become inputs of the solver, so
that their gradients arrive where autograd expects them. They are found in the graph of each
evaluation of the forward pass: a list of parameters taken beforehand would miss closures, and one
taken once would miss what a later step alone uses.

An evaluation must compute all else that it reads. Nodes of autograd's graph that are older than it,
and leaves that another evaluation was given, were kept by f or come from outside: their gradient
would end where the solver has cut the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .boundary import CaptureError, is_entered, is_guarded

_AccumulateGrad: type = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]
now = torch.autograd._get_sequence_nr  # type: ignore[attr-defined]
"""The number of the next node that autograd makes in this thread."""


class Captures:
    """The leaves that require grad in the graphs of f, in the order in which they were met."""

    def __init__(
        self,
        known: Sequence[Tensor],
        held: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Start with none, before the first evaluation.

        Args:
            known: the tensors that f is given.
            held: names the type of an argument that is no pytree, for the error that may come.
        """
        self.known = list(known)  # held, so that no id is used again
        self.known_ids = {id(tensor) for tensor in known}
        self.held = held
        self.leaves: list[Tensor] = []
        self._nodes: dict[Any, Tensor] = {}  # of leaves met so far
        self._twice: set[int] = set()  # ids of those that one evaluation reached by several edges
        self._last: list[Any] = []  # where the last evaluation ended
        self._entered: set[Any] = set()  # nodes of known tensors that are no leaves
        self._enter(known)
        self._start = now()

    def add(self, read: Sequence[Tensor], outputs: Sequence[Tensor], since: int) -> None:
        """Walk the graph of one evaluation.

        Args:
            read: the state it began from.
            outputs: what it returned.
            since: ``now()`` before it.
        """
        node = read[0].grad_fn
        stops = self._entered if node is None else {*self._entered, node}
        ends, older = ends_of(outputs, since, stops)
        if older is not None:
            self._refuse(older)
        for node in ends:
            if node not in self._nodes:
                self._meet(read, node)
        if len(ends) > 1 and len(set(ends)) < len(ends):
            counts = Counter(ends)
            self._twice |= {id(t) for node, t in self._nodes.items() if counts[node] > 1}
        self._last = [node for node in ends if node in self._nodes]  # not the state's

    def _meet(self, read: Sequence[Tensor], node: Any) -> None:
        if node is read[0].grad_fn:
            return
        leaf = node.variable
        for tensor in read:
            if leaf is tensor:
                return
        if is_guarded(leaf):
            refuse_kept("it was given there")
        self._nodes[node] = leaf
        if id(leaf) not in self.known_ids:
            self.leaves.append(leaf)

    def renew(self, known: Sequence[Tensor]) -> None:
        """Go on with other tensors as those that f is given: what it keeps of the first shows."""
        ids = {id(old): id(new) for old, new in zip(self.known, known, strict=True)}
        self._nodes = {node: t for node, t in self._nodes.items() if id(t) not in ids}
        self._twice = {ids.get(number, number) for number in self._twice}
        self.known, self.known_ids = list(known), set(ids.values())
        self._enter(known)

    def _enter(self, known: Sequence[Tensor]) -> None:
        made = {t.grad_fn: t for t in known if t.grad_fn is not None}
        self._entered = set(made)
        self._nodes |= made

    def twice(self) -> list[Tensor]:
        """The leaves that one evaluation reached by several edges."""
        return [leaf for leaf in self._nodes.values() if id(leaf) in self._twice]

    def reached_twice(self, tensors: Sequence[Tensor]) -> list[bool]:
        """For each of the tensors, whether one evaluation of f reached it by several edges."""
        return [id(tensor) in self._twice for tensor in tensors]

    def reached_last(self) -> set[int]:
        """The ids of the leaves, besides the state, at which the last evaluation ended."""
        return {id(self._nodes[node]) for node in self._last}

    def _refuse(self, node: Any) -> NoReturn:
        if is_entered(node) or node._sequence_nr() >= self._start:
            refuse_kept(where_made(node))
        held = self.held()
        passed = "" if held is None else f" ({held} {_NO_PYTREE})"
        raise CaptureError(
            "f: expected to read its arguments, and parameters or other leaves, got a tensor that "
            f"requires grad and was computed outside f (by {node.name()}), or kept by f since an "
            f"earlier solve; pass it as an argument, solve(f, z0, tensor){passed}, or choose "
            "adjoint='hooks', which takes what f closes over"
        )


_NO_PYTREE = (
    "is no pytree, so its tensors are not passed with it: register a dataclass with "
    "torch.export.register_dataclass, another type with torch.utils._pytree.register_pytree_node, "
    "or pass a tuple or dict"
)


def where_made(node: Any) -> str:
    """How a tensor came about in another evaluation, for an error."""
    return "it was given there" if is_entered(node) else f"it was computed there by {node.name()}"


def refuse_kept(where: str) -> NoReturn:
    """f reads what it kept from another evaluation."""
    raise CaptureError(
        "f: expected to compute what it reads anew in every evaluation, got a tensor that it kept "
        f"from an earlier one ({where}) and that requires grad; compute it outside and pass it as "
        "an argument, solve(f, z0, tensor), keep it detached, or choose adjoint='backprop'"
    )


def ends_of(
    outputs: Sequence[Tensor], since: int, stops: Collection[Any] = ()
) -> tuple[list[Any], Any]:
    """The leaves' nodes below the outputs, one for every edge; a node older than `since`, or None.

    Where there is such a node the walk ends at it, and so at one by which another evaluation was
    entered. `stops` count as leaves' nodes.
    """
    ends: list[Any] = []
    nodes: list[Any] = []  # of f, each once; it grows while it is gone through
    for output in outputs:
        node = output.grad_fn
        if node in stops:
            ends.append(node)
        elif node is not None:
            nodes.append(node)
        elif output.requires_grad:  # f returned a leaf as it is
            ends.append(torch.autograd.graph.get_gradient_edge(output).node)
    seen = set(nodes)
    for node in nodes:
        if node._sequence_nr() < since or (since and is_entered(node)):
            return ends, node
        for below, _ in node.next_functions:
            if type(below) is _AccumulateGrad or below in stops:
                ends.append(below)
            elif below is not None and below not in seen:
                seen.add(below)
                nodes.append(below)
    return ends, None


def leaves_below(outputs: Sequence[Tensor]) -> list[Tensor]:
    """All leaves that require grad in the graph of the outputs."""
    return list(_leaves(ends_of(outputs, 0)[0]).values())


def _leaves(ends: Sequence[Any]) -> dict[int, Tensor]:
    """The leaves of these nodes, by id."""
    leaves = [node.variable for node in ends]
    return {id(leaf): leaf for leaf in leaves}


class ReadAgain:
    """Whether f, evaluated again, reads what it read in the forward pass."""

    def __init__(self, known: Sequence[Tensor], reached: Collection[int]) -> None:
        """`known`: the leaves that it may read; `reached`: the places of those that it must."""
        self.known, self.reached = known, reached

    def check(self, outputs: Sequence[Tensor], since: int) -> None:
        """Walk the graph of one evaluation; CaptureError where it reads others."""
        entered = {t.grad_fn: t for t in self.known if t.grad_fn is not None}
        ends, older = ends_of(outputs, since, entered)
        if older is not None:
            refuse_kept(where_made(older))
        found = _leaves([end for end in ends if end not in entered])
        found |= {id(entered[end]): entered[end] for end in ends if end in entered}
        for leaf in found.values():
            if is_guarded(leaf):
                refuse_kept("it was given there")
        for i in self.reached:
            leaf = self.known[i]
            # One that was frozen since takes no gradient, as in autograd.
            if id(leaf) not in found and leaf.requires_grad:
                raise CaptureError(
                    "f: expected to read the same tensors on the way back as in the forward pass, "
                    f"got one of shape {tuple(leaf.shape)} no longer; the gradient would be wrong. "
                    "Where torch.func.functional_call puts tensors in the place of f's parameters, "
                    "call it inside of f and pass them: solve(lambda z, p, x: functional_call("
                    "cell, p, (z, x)), z0, p, x), or choose adjoint='backprop'"
                )


def check_kept(outputs: Sequence[Tensor], start: int, since: int, given: Sequence[Tensor]) -> None:
    """CaptureError where an evaluation reads what f kept of one between `start` and `since`.

    For what runs in autograd's own graph, and may close over what was computed before. What lies
    above the tensors that f was `given` is not looked at.
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
