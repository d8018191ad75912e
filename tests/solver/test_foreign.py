"""Modules that nobody here wrote: states come back, and gradients have the bits of autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.solver.foreign import OTHERS, TRANSFORMERS, Made
from torch_revdeq.testing import assert_exact_gradients


def hold_to_autograd(make: Callable[[], Made], beta: float, *, autocast: bool) -> None:
    torch.manual_seed(0)
    f, shape = make()
    x = torch.randn(shape, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        stats = assert_exact_gradients(f, torch.zeros(shape), x, beta=beta, max_steps=8)
    assert stats.state == "exact" and stats.reconstruction_error == 0.0


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("beta", [0.5, 0.8])
@pytest.mark.parametrize("name", OTHERS)
def test_layers_of_torch_and_einops(name: str, beta: float, autocast: bool) -> None:
    hold_to_autograd(OTHERS[name], beta, autocast=autocast)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("beta", [0.5, 0.8])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_layers_of_transformers(name: str, beta: float, autocast: bool) -> None:
    pytest.importorskip("transformers", reason="made of layers of transformers")
    hold_to_autograd(TRANSFORMERS[name], beta, autocast=autocast)
