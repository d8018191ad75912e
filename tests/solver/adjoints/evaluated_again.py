"""A cell, and a solve by each adjoint that evaluates it again on the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

F64 = torch.float64
ADJOINTS = ("reversible", "hooks", "checkpoint", "functional")


def options_of(adjoint: str) -> dict[str, Any]:
    return {"adjoint": adjoint, "max_steps": 4, "state": F64 if adjoint == "functional" else "auto"}


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of_z, self.of_x = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, z: Tensor, x: Tensor) -> Any:
        return torch.tanh(0.3 * self.of_z(z) + self.of_x(x))
