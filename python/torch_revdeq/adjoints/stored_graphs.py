"""``store_last``: the graphs of the last half steps, kept instead of recomputed.

The backward pass needs them first. Each takes the memory of the activations of one half step, and
saves one evaluation of f. With an exact state the gradient is bitwise unchanged; with a float state
fewer half steps depend on a reconstruction that loses precision.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..evaluation.closure import ClosureLeaves
from ..runtime.saved import as_it_is


@dataclass(eq=False, repr=False)
class StoredGraph:
    """One evaluation of f, ready to be differentiated."""

    k: int
    state: list[Tensor]
    out: list[Tensor]
    aliases: dict[int, Tensor]  # by id: of leaves that f used more than once, made right after f


class StoredGraphs:
    """The graphs of the last `count` half steps that were evaluated."""

    def __init__(self, count: int | None, budget: int | None) -> None:
        """Keep `count` graphs; None: as many as fit in `budget` bytes. `reads` count as free."""
        self.count, self.budget = count, budget
        self.reads: Sequence[Tensor] = ()
        self.graphs: deque[StoredGraph] = deque(maxlen=count)

    @property
    def wanted(self) -> bool:
        """Whether any graph is kept."""
        return self.count is None or self.count > 0

    def evaluated(
        self,
        k: int,
        evaluate: Callable[[], list[Tensor]],
        state: list[Tensor],
        closure: ClosureLeaves,
        since: int,
    ) -> list[Tensor]:
        """f in half step k; its graph is kept until there are `count` later ones."""
        if self.count is None:
            sizes: dict[int, int] = {}
            with saved_tensors_hooks(partial(_count, sizes), as_it_is):
                out = evaluate()
            closure.add(state, out, since)
            self._decide(sizes, closure.leaves)
        else:
            out = evaluate()
            closure.add(state, out, since)
        if self.count:
            aliases = {id(leaf): leaf.view_as(leaf) for leaf in closure.twice()}
            self.graphs.append(StoredGraph(k, state, out, aliases))
        return out

    def _decide(self, sizes: dict[int, int], leaves: Sequence[Tensor]) -> None:
        """How many graphs fit, by the memory of one beyond the tensors that exist anyway."""
        assert self.budget is not None
        for tensor in (*self.reads, *leaves):
            for storage in _storages(tensor):
                sizes.pop(storage.data_ptr(), None)
        self.count = self.budget // max(1, sum(sizes.values()))
        self.graphs = deque(maxlen=self.count)

    def by_half_step(self) -> dict[int, StoredGraph]:
        """The kept graphs, by half step."""
        return {graph.k: graph for graph in self.graphs}


def _count(sizes: dict[int, int], tensor: Tensor) -> Tensor:
    for storage in _storages(tensor):
        sizes[storage.data_ptr()] = storage.nbytes()
    return tensor.detach()  # the tensor itself would form a cycle with its graph


def _storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    """The storages of a tensor; for a sparse tensor, those of its parts."""
    if tensor.layout == torch.strided:
        parts = [tensor]
    elif tensor.layout == torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    else:
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [part.untyped_storage() for part in parts]
