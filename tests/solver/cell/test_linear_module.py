"""``LinearCell`` as a module: its formula and weights, copies, parametrizations."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from revdeq_kernels.ops.cell import checks as cell_checks
from tests.solver.cell.linear_layers import (
    BF16,
    F32,
    ONE_OP,
    cell,
    gradients,
    inputs,
    layer,
    one_op,
)
from tests.tolerances import unit_roundoff
from torch_revdeq import LinearCell, ReconstructionError


@pytest.mark.parametrize("dtype", [F32, torch.float64, BF16, torch.float16])
@pytest.mark.parametrize("act", cell_checks.ACTS)
def test_it_is_the_formula_and_begins_contractive(act: str, dtype: torch.dtype) -> None:
    f = cell(act, dtype)
    z, x = torch.randn(6, 16).to(dtype), inputs(dtype=dtype)
    formulas = {
        "tanh": torch.tanh,
        "relu": torch.relu,
        "gelu": nn.functional.gelu,
        "silu": nn.functional.silu,
        "gelu_tanh": partial(nn.functional.gelu, approximate="tanh"),
    }
    want = formulas[act](nn.functional.linear(z, f.W) + nn.functional.linear(x, f.U, f.b))
    assert torch.equal(f(z, x), want)
    # Orthogonal times 0.7, rounded to dtype entry by entry.
    rounding = 16 * torch.finfo(dtype).eps
    assert abs(torch.linalg.matrix_norm(f.W.double(), 2).item() - 0.7) < rounding
    states = torch.randn(2, 50, 16, dtype=torch.float64)
    far = f.double()(states, torch.zeros(50, 12, dtype=torch.float64))
    ratio = (far[0] - far[1]).norm(dim=-1) / (states[0] - states[1]).norm(dim=-1)
    assert ratio.max() < (0.7 + rounding) * 1.13


def test_an_activation_that_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"act: expected one of 'tanh', .*, got 'sigmoid'"):
        LinearCell(4, 4, "sigmoid")


@one_op
def test_copies_and_pickles_compute_the_same(implementation: str) -> None:
    model = layer(implementation)
    want = model(inputs())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(inputs()), want)


def test_the_start_has_as_many_features_as_the_state() -> None:
    for shape in ((12,), (5, 12), (2, 3, 12)):
        for implementation in ("solver", *ONE_OP):
            out = layer(implementation)(torch.ones(shape))
            assert out.shape == (*shape[:-1], 16)


# ---- parametrized weights --------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["solver", *ONE_OP])
def test_parametrizations(implementation: str) -> None:
    f = cell()
    parametrizations.orthogonal(f, "W")
    grads = gradients(layer(implementation, f, max_steps=4), inputs())
    assert grads["f.parametrizations.W.original"].abs().max() > 0
    # It is a product of 16 reflections, and here once more with itself: sums of 16 products of 1.
    bound = 2 * 16 * 16 * unit_roundoff(F32)
    assert (f.W @ f.W.t() - torch.eye(16)).abs().max() <= bound


class Counted(nn.Module):
    """W itself, and how often it was computed."""

    calls = 0

    def forward(self, w: Tensor) -> Tensor:
        self.calls += 1
        return w


@one_op
def test_one_op_looks_at_a_parametrized_weight_once(implementation: str) -> None:
    f, counted = cell(), Counted()
    parametrize.register_parametrization(f, "W", counted)
    counted.calls = 0
    gradients(layer(implementation, f), inputs())
    assert counted.calls == 1


@one_op
def test_spectral_norm_in_training(implementation: str) -> None:
    """Its power iteration changes W with every look at it; one op looks once."""
    f = cell()
    parametrizations.spectral_norm(f, "W")
    model = layer(implementation, f, max_steps=4)
    assert gradients(model, inputs())["f.parametrizations.W.original"].abs().max() > 0


@one_op
def test_what_the_derivative_of_a_parametrization_reads_may_not_change(implementation: str) -> None:
    f = cell()
    parametrizations.weight_norm(f, "W")
    out = layer(implementation, f)(inputs())
    dict(f.named_parameters())["parametrizations.W.original1"].data[3] *= 2
    with pytest.raises(ReconstructionError, match="expected x, U and the parametrizations"):
        out.sum().backward()


class Shifted(nn.Module):
    """W plus a number for each column, kept in another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(16, dtype=dtype))

    def forward(self, w: Tensor) -> Tensor:
        return w + (w * self.shift.real).real.to(w.dtype)


@one_op
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128])
def test_a_parametrization_may_keep_any_dtype(implementation: str, dtype: torch.dtype) -> None:
    f = cell()
    parametrize.register_parametrization(f, "W", Shifted(dtype))
    model = layer(implementation, f)
    assert gradients(model, inputs())["f.parametrizations.W.0.shift"].abs().max() > 0
    out = model(inputs())
    dict(f.named_parameters())["parametrizations.W.0.shift"].data[5] = 1
    with pytest.raises(ReconstructionError, match="expected x, U and the parametrizations"):
        out.sum().backward()
