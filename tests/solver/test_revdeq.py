"""The layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.solver.cells import MLP
from tests.solver.solving import inputs
from torch_revdeq import RevDEQ, solve


def test_the_layer_copies_pickles_and_loads() -> None:
    layer, x = RevDEQ(MLP(), beta=0.7, max_steps=3), inputs()
    z = layer(x)
    z.sum().backward()
    assert layer.stats is not None and layer.stats.reconstruction_error == 0.0
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), z)
        assert other.stats is not None and other.stats.steps == 3
    fresh = RevDEQ(MLP(), beta=0.7, max_steps=3)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), z)
    assert "beta=0.7" in repr(layer)


def test_an_option_that_solve_does_not_know_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"^steps: expected an option of solve"):
        RevDEQ(MLP(), steps=3)


def test_the_layer_starts_from_zero_or_where_it_is_told() -> None:
    f, x = MLP(), inputs()
    layer = RevDEQ(f, max_steps=3)
    assert torch.equal(layer(x), solve(f, torch.zeros_like(x), x, max_steps=3).z)
    warm = layer.solve(x)
    again = layer(x, z0=warm.z.detach(), y0=warm.y.detach())
    assert torch.equal(again, solve(f, warm.z.detach(), x, y0=warm.y.detach(), max_steps=3).z)
    with pytest.raises(TypeError, match="z0"):
        layer()
    with pytest.raises(TypeError, match="z0"):
        RevDEQ(f, z0=x)


def test_the_layer_trains_its_beta() -> None:
    layer, x = RevDEQ(MLP(), beta=nn.Parameter(torch.tensor(0.6)), max_steps=3), inputs()
    assert "beta" in dict(layer.named_parameters())
    layer(x).sum().backward()
    assert layer.beta.grad is not None and layer.beta.grad != 0
    assert "learned" in repr(layer)
