"""An equilibrium model on a graph, as in IGNN: `python examples/trainers/pyg_equilibrium.py`.

Classifies the members of Zachary's karate club into four groups, with one labeled member per group.
Needs torch_geometric.

What to watch:

- Watch `residual`: training may make f expand. Here, as in IGNN, W is rescaled after every update.
- Pass `edge_index` and edge weights as arguments of f; integer tensors get no gradient. A
  DataLoader joins a mini-batch into one large graph, so a solve has one residual: all graphs take
  as many steps as the slowest.
- On a GPU, sums over neighbors use atomic additions, in another order each time. f then differs in
  its last bits, the states are not reconstructed, and `backward()` raises ReconstructionError. Use
  `torch.use_deterministic_algorithms(True)`.
- Sample neighbors and drop edges outside f, and pass the result. Inside f, every evaluation would
  see another graph.
- `GCNConv(cached=True)` keeps the normalization of its first graph, which is right for one graph
  only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_revdeq import RevDEQ

try:
    from torch_geometric.datasets import KarateClub
    from torch_geometric.nn import GCNConv
except ModuleNotFoundError as error:
    raise SystemExit(f"pyg_equilibrium: {error}; pip install '.[trainers]' in the clone") from None


class Cell(nn.Module):
    """f(z, x) = tanh(A z W + x), where A sums over neighbors, with a norm of at most 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = GCNConv(width, width)

    def forward(self, z: Tensor, x: Tensor, edge_index: Tensor) -> Tensor:
        """The next state of every node."""
        return torch.tanh(self.conv(z, edge_index) + x)

    @torch.no_grad()
    def contract(self, most: float = 0.9) -> None:
        """Scale W to a norm of at most that, so that f has one equilibrium, and comes to it."""
        weight = self.conv.lin.weight
        weight.mul_(min(1.0, most / torch.linalg.matrix_norm(weight, 2).item()))


class Network(nn.Module):
    """Features of nodes to an equilibrium, to classes."""

    def __init__(self, features: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.encode, self.head = GCNConv(features, width), nn.Linear(width, classes)
        self.equilibrium = RevDEQ(Cell(width), beta=0.8, max_steps=30, tol=1e-4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits of every node."""
        return self.head(self.equilibrium(self.encode(x, edge_index), edge_index))


def main(updates: int = 60) -> None:
    """Train on four nodes, test on the others."""
    torch.set_num_threads(1)  # tensors this small gain nothing from a second
    torch.manual_seed(0)
    graph: Any = KarateClub()[0]
    model = Network(graph.num_features, 4)
    cell: Any = model.equilibrium.f
    optimizer = torch.optim.AdamW(
        model.parameters(),
        1e-2,
    )
    for update in range(1, updates + 1):
        logits = model(graph.x, graph.edge_index)
        loss = F.cross_entropy(logits[graph.train_mask], graph.y[graph.train_mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cell.contract()
        stats: Any = model.equilibrium.stats
        if update % 20 == 0:
            print(f"loss {loss.item():.3f} {stats.as_dict()}")
    right = (model(graph.x, graph.edge_index).argmax(1) == graph.y)[~graph.train_mask]
    print(
        f"accuracy {right.float().mean():.1%} of {len(right)} nodes without a label, "
        f"reconstruction error {stats.reconstruction_error}"
    )


if __name__ == "__main__":
    main()
