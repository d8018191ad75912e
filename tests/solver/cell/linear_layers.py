"""Helpers shared by the tests of a layer with a ``LinearCell``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import BACKENDS
from torch_revdeq import LinearCell, RevDEQ

F32, BF16 = torch.float32, torch.bfloat16

ONE_OP = ["composite", *(["cpu"] if "cpu" in BACKENDS else [])]
"""The implementations that support any number of features here."""

one_op = pytest.mark.parametrize("implementation", ONE_OP)


def inputs(rows: int = 6, width: int = 12, dtype: torch.dtype = F32) -> Tensor:
    """The inputs x."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def cell(act: str = "tanh", dtype: torch.dtype = F32) -> LinearCell:
    """A cell with 16 features and 12 inputs, with the same weights in every call."""
    torch.manual_seed(0)
    return LinearCell(12, 16, act, dtype=dtype)


def layer(implementation: str | None, f: LinearCell | None = None, **options: Any) -> RevDEQ:
    """The cell in a layer that solves with this implementation."""
    return RevDEQ(f or cell(), implementation=implementation, **options)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output and the gradients of a loss, by name."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    out = model(x)
    (out.float().sin().sum() + out.float().square().sum()).backward()
    grads = {name: p.grad for name, p in model.named_parameters()} | {"x": x.grad}
    found = {name: g.clone() for name, g in grads.items() if g is not None}
    assert len(found) == len(grads)
    return {"out": out.detach(), **found}
