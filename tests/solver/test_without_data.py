"""A solve of tensors without data: shapes, dtypes and devices, and those of the gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests.solver.cells import MLP
from torch_revdeq import LinearCell, RevDEQ, solve


def on_meta() -> AbstractContextManager[Any]:
    return torch.device("meta")


OPTIONS: list[dict[str, Any]] = [
    {},
    {"state": torch.float32, "adjoint": "functional"},
    {"adjoint": "hooks"},
    {"adjoint": "checkpoint"},
    {"adjoint": "backprop", "frac_bits": 20},
    {"tol": 0.1},
    {"tol": 0.1, "per_sample": True},
    {"save_at": [2], "store_last": 1},
    {"max_steps": lambda: 3},
    {"beta": [0.3, 0.5], "max_steps": 2, "backward_steps": 1, "rng": "shared"},
]


@pytest.mark.parametrize("mode", [on_meta, FakeTensorMode])
@pytest.mark.parametrize("options", OPTIONS, ids=", ".join)
def test_shapes_of_the_solution_and_of_the_gradients(options: dict[str, Any], mode: Any) -> None:
    with mode():
        layer, x = RevDEQ(MLP(), **options), torch.randn(3, 16, requires_grad=True)
        solution = layer.solve(x)
        for z in (solution.z, solution.y, *solution.saved):
            assert (z.shape, z.dtype, z.device) == (x.shape, x.dtype, x.device)
            assert z.is_meta or isinstance(z, FakeTensor)
        solution.z.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape
        for p in layer.parameters():
            assert p.grad is not None
            assert p.grad.shape == p.shape
        with torch.no_grad():
            assert not layer(x).requires_grad


@pytest.mark.parametrize("mode", [on_meta, FakeTensorMode])
def test_a_linear_cell_and_a_pytree(mode: Any) -> None:
    with mode():
        layer = RevDEQ(LinearCell(8, 16))
        assert layer(torch.randn(3, 8)).shape == (3, 16)
        z0 = {"a": torch.zeros(3, 4).bfloat16(), "b": torch.zeros(2)}
        z = solve(lambda z: {"a": torch.tanh(z["a"]), "b": z["b"] / 2}, z0).z
        assert {name: (leaf.shape, leaf.dtype) for name, leaf in z.items()} == {
            "a": ((3, 4), torch.bfloat16),
            "b": ((2,), torch.float32),
        }


def test_errors_are_those_of_eager_mode() -> None:
    with torch.device("meta"):
        x = torch.zeros(3, 16)
        with pytest.raises(ValueError, match="f: expected a result of the shape of z0"):
            solve(lambda z: z[:1], x)
        with pytest.raises(ValueError, match="beta: expected a number"):
            solve(torch.tanh, x, beta=2.5)
        with pytest.raises(TypeError, match="state: expected f in float32"):
            solve(lambda z: z.double(), x)
        with pytest.raises(TypeError, match="maxsteps"):
            solve(torch.tanh, x, maxsteps=2)  # type: ignore[call-arg]
