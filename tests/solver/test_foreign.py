"""Modules that nobody here wrote: states come back, and gradients have the bits of autograd.

What is known not to go, and how it says so, is here too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.solver.foreign import OTHERS, TRANSFORMERS, Made
from torch_revdeq import solve
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


def test_batch_norm_counts_every_evaluation_of_the_forward_pass_once() -> None:
    norm = nn.BatchNorm1d(4)
    x = torch.randn(8, 4, requires_grad=True)
    solve(lambda z, x: norm(z + x), torch.zeros(8, 4), x, max_steps=3).z.sum().backward()
    assert norm.num_batches_tracked is not None and int(norm.num_batches_tracked) == 2 * 3


def test_spectral_norm_in_train_mode_is_refused_by_name() -> None:
    """Its power iteration changes the buffer that the next evaluation reads."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    f = nn.Sequential(layer, nn.Tanh())
    z0 = torch.zeros(4, 8)
    with pytest.raises(RuntimeError, match=r"expected to read none.*'_u' in _SpectralNorm"):
        solve(f, z0, max_steps=3)
    layer.eval()
    assert_exact_gradients(f, z0, max_steps=3)
