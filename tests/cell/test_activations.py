"""The activations of the cell's kernels and their slopes, in Triton's interpreter, vs. float64."""

# A jitted function has a type that only the compiler calls: pyright takes each call for an error.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from revdeq_kernels.ops.cell import choice
from tests.cell.linear_cells import ACTS
from tests.cell.tolerances import ACT_ERROR
from tests.conftest import BACKENDS

if "triton" not in BACKENDS:
    pytest.skip("Triton's interpreter is off", allow_module_level=True)

import triton
import triton.language as tl

from revdeq_kernels.triton.device.activations import activation, inside_act, times_slope
from revdeq_kernels.triton.launch.cell import ACTS as NUMBERS

BLOCK: tl.constexpr = tl.constexpr(4096)


@triton.jit
def evaluate(x, f, d, CELL: tl.constexpr):
    """f <- act(x), d <- act'(x)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i)
    e = inside_act(value, CELL)
    result = activation(value, e, CELL)
    tl.store(f + i, result)
    tl.store(d + i, times_slope(1.0, value, e, result, CELL))


def evaluated(act: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    f, d = torch.empty_like(x), torch.empty_like(x)
    evaluate[(x.numel() // BLOCK.value,)](x, f, d, SimpleNamespace(act=NUMBERS[act].value))
    return f, d


@pytest.mark.parametrize("act", NUMBERS)
def test_values_and_slopes_are_within_half_of_what_the_analysis_allows(act: str) -> None:
    """The other half is for ex2.approx and rcp.approx on a GPU: 1.4 units each of a number <= 1."""
    x = torch.linspace(-24.0, 24.0, 256 * BLOCK.value)
    x[::2] = x[::2].sign() * 2.0 ** torch.linspace(-30, 120, len(x[::2]))
    wide = x.double().requires_grad_()
    want = ACTS[act].function(wide)
    (want_slope,) = torch.autograd.grad(want.sum(), wide)
    want = want.detach()
    size = want if act == "silu" else want_slope  # as in tolerances.py
    (f, d), sizes = evaluated(act, x), (want, size)
    for got, exact, by in zip((f, d), (want, want_slope), sizes, strict=True):
        error = (got.double() - exact).abs() / (1 + by.abs())
        assert error.max() <= ACT_ERROR / 2, f"{error.max() / ACT_ERROR} at {x[error.argmax()]}"


@pytest.mark.parametrize("act", NUMBERS)
def test_far_from_0_and_not_finite(act: str) -> None:
    """The ends of each, and NaN where a limit is 0 times infinity, as in torch on a GPU."""
    x = torch.full((BLOCK.value,), float("nan"))
    x[:4] = torch.tensor([float("inf"), 3e38, -3e38, -float("inf")])
    end = {"tanh": [1.0, 1.0, -1.0, -1.0], "relu": [float("inf"), x[1], 0.0, 0.0]}
    want = end.get(act, [float("inf"), x[1], 0.0, float("nan")])
    found = evaluated(act, x)[0]
    assert found[:4].nan_to_num(7.0).tolist() == torch.tensor(want).nan_to_num(7.0).tolist()
    assert bool(found[4:].isnan().all())


def test_the_activations_of_the_gpu_stand_in_the_order_of_their_numbers() -> None:
    assert {name: number.value for name, number in NUMBERS.items()} == {
        name: k for k, name in enumerate(choice.GPU_ACTS)
    }
