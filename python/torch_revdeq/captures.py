"""Which tensors f reads that nobody passed to it, read off autograd's graph of its evaluations.

A module's parameters and the leaves that a function closes over become inputs of the solver, so
that their gradients arrive where autograd expects them. They are found in the graph of each
evaluation of the forward pass: a list of parameters taken beforehand would miss closures, and one
taken once would miss what a later step alone uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_AccumulateGrad: type = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]


class CaptureError(RuntimeError):
    """f reads a tensor whose gradient the solver could not deliver."""


class Captures:
    """The leaves that require grad in the graphs of f, in the order in which they were met."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        """Start with none; `known` are the tensors that f is given."""
        self.known_ids = {id(tensor) for tensor in known}
        self.known = known  # so that no id is used again
        self.leaves: list[Tensor] = []
        self._nodes: dict[Any, Tensor] = {}  # of leaves met so far
        self._twice: set[int] = set()  # ids of those that one evaluation reached by several edges
        # Nodes that autograd makes from now on are f's own.
        self._mark = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]

    def add(self, read: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Walk the graph of one evaluation; `read` is the state it began from."""
        ends: list[Any] = []  # one entry for every edge into a leaf
        nodes: list[Any] = []  # of f, each once; it grows while it is gone through
        for output in outputs:
            if output.grad_fn is not None:
                nodes.append(output.grad_fn)
            elif output.requires_grad:  # f returned a leaf as it is
                ends.append(torch.autograd.graph.get_gradient_edge(output).node)
        seen = set(nodes)
        mark = self._mark
        for node in nodes:
            if node._sequence_nr() < mark:
                raise self._older(node)
            for below, _ in node.next_functions:
                if type(below) is _AccumulateGrad:
                    ends.append(below)
                elif below is not None and below not in seen:
                    seen.add(below)
                    nodes.append(below)
        for node in ends:
            if node not in self._nodes:
                self._meet(read, node)
        if len(set(ends)) < len(ends):
            counts = Counter(ends)
            self._twice |= {id(t) for node, t in self._nodes.items() if counts[node] > 1}

    def _meet(self, read: Sequence[Tensor], node: Any) -> None:
        leaf = node.variable
        for tensor in read:
            if leaf is tensor:
                return
        self._nodes[node] = leaf
        if id(leaf) not in self.known_ids:
            self.leaves.append(leaf)

    def twice(self) -> list[Tensor]:
        """The leaves that one evaluation reached by several edges."""
        return [leaf for leaf in self._nodes.values() if id(leaf) in self._twice]

    def reached_twice(self, tensors: Sequence[Tensor]) -> list[bool]:
        """For each of the tensors, whether one evaluation of f reached it by several edges."""
        return [id(tensor) in self._twice for tensor in tensors]

    @staticmethod
    def _older(node: Any) -> CaptureError:
        return CaptureError(
            "f: expected to read its arguments, and parameters or other leaves, got a tensor that "
            f"requires grad and was computed outside f (by {node.name()}); pass it as an argument, "
            "solve(f, z0, tensor), or choose adjoint='hooks', which takes what f closes over"
        )


def leaves_below(outputs: Sequence[Tensor]) -> list[Tensor]:
    """All leaves that require grad in the graph of the outputs."""
    stack: list[Any] = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen, leaves = set(stack), []
    while stack:
        node = stack.pop()
        if type(node) is _AccumulateGrad:
            leaves.append(node.variable)
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                stack.append(below)
    return leaves
