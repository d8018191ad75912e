"""The adjoint step: the bits of the same sequence in PyTorch, on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import revdeq_kernels as rk
from tests.conftest import BACKENDS, random_state, same_bits
from tests.tolerances import assert_within, gradient_bound

DTYPES = [
    (torch.float32, torch.float32, torch.float32),
    (torch.float32, torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32, torch.bfloat16),
    (torch.float32, torch.float16, torch.float16),
    (torch.float32, torch.float32, torch.float16),
    (torch.float64, torch.float64, torch.float64),
]
"""(grad, vjp, seed): all that adjoint_ takes."""


def unfused(
    grad: torch.Tensor, vjp: torch.Tensor, scale: float, beta: float, seed: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a solver writes without the op, one rounding a line."""
    scaled = grad * scale
    new = scaled + vjp.to(grad.dtype)
    return new, (new * beta).to(seed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("grad", "vjp", "seed"), DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 7, 33, 1003])
def test_same_bits_as_the_unfused_sequence(
    backend: str, grad: torch.dtype, vjp: torch.dtype, seed: torch.dtype, n: int
) -> None:
    g, v = random_state(n, grad), random_state(n, vjp, seed=1)
    for scale, beta in ((0.5, 0.5), (1 - 0.7312, 0.7312), (1.0, 0.8), (-0.3, 1.3)):
        expected = unfused(g, v, scale, beta, seed)
        carried, out = g.clone(), torch.full_like(g, float("nan"), dtype=seed)
        with rk.backend(backend):
            assert rk.adjoint_(carried, v, scale, beta, out) is carried
        assert same_bits(expected[0], carried)
        assert same_bits(expected[1], out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_factor_that_float32_cannot_hold(backend: str) -> None:
    """It is rounded to float32 before it multiplies: 0, and with an infinity NaN."""
    grad, seed = torch.tensor([-math.inf, 1.0]), torch.ones(2)
    with rk.backend(backend):
        rk.adjoint_(grad, torch.zeros(2), 1.0, 1.4e-175, seed)
    assert same_bits(seed, torch.tensor([math.nan, 0.0]))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@given(
    dtypes=st.sampled_from(DTYPES),
    n=st.integers(0, 200),
    scale=st.floats(-2, 2),
    beta=st.floats(-2, 2),
    shift=st.integers(-120, 110),
    seed=st.integers(0, 2**31),
)
def test_any_magnitude(
    backend: str,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    n: int,
    scale: float,
    beta: float,
    shift: int,
    seed: int,
) -> None:
    """From subnormal to overflowing gradients."""
    # Triton's interpreter takes a factor that float32 holds as a subnormal for a float64, and -0.0
    # for 0.0.
    changed = any(0 < abs(x) < 2.0**-126 or str(x) == "-0.0" for x in (scale, beta))
    assume(backend != "triton" or not changed)
    g = (random_state(n, torch.float64, seed) * 2.0**shift).to(dtypes[0])
    v = (random_state(n, torch.float64, seed + 1) * 2.0**shift).to(dtypes[1])
    expected = unfused(g, v, scale, beta, dtypes[2])
    out = torch.zeros_like(g, dtype=dtypes[2])
    with rk.backend(backend):
        rk.adjoint_(g, v, scale, beta, out)
    assert same_bits(expected[0], g)
    assert same_bits(expected[1], out)


def test_chain_is_the_gradient_of_the_unrolled_updates() -> None:
    """Depth 6 with given Jacobians: the pair of adjoints against autograd through the updates."""
    torch.manual_seed(0)
    beta, depth, n = 0.7312, 6, 40
    w = torch.randn(n, n, dtype=torch.float64) / n**0.5
    y0 = torch.randn(n, dtype=torch.float64, requires_grad=True)
    y = z = y0
    for _ in range(depth):
        y = torch.lerp(y, w @ z, beta)
        z = torch.lerp(z, w @ y, beta)
    weight = torch.randn(n, dtype=torch.float64)
    (expected,) = torch.autograd.grad((z * weight).sum(), y0)

    gy, gz = torch.zeros(n, dtype=torch.float64), weight.clone()
    seed = beta * gz
    for _ in range(depth):
        rk.adjoint_(gy, w.T @ seed, 1.0, beta, seed)
        gy.mul_(1 - beta)
        rk.adjoint_(gz, w.T @ seed, 1 - beta, beta, seed)
    # Linear: no state is read. Sums of n products, in both.
    bound = 2 * gradient_bound(torch.float64, 0.0, depth, curvature=0.0, terms=n)
    assert_within([gy + gz], [expected], bound)
