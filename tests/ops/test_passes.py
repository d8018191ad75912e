"""The passes of a backward step: the same as inverse and adjoint, with correct gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels.core.roles import casts
from tests.conftest import BACKENDS, BETAS, EXACT_F, FLOAT_PAIRS
from tests.ops.arguments import (
    EXACT_PASSES,
    FLOAT_PASSES,
    PASSES,
    assert_same_outcome,
    call,
    copies,
    good_arguments,
    grad_of,
    outcome,
    state_of,
)
from tests.ops.device_checks import any_bits, check
from tests.tolerances import assert_within, gradient_bound, reconstruction_bound

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64


def unfused(op: str, arguments: dict[str, object]) -> None:
    """The same in the ops that a solver had without the passes, and plain PyTorch."""
    a: dict = arguments
    exact = "exact" in op
    state, beta = a[state_of(op)], a["beta"]
    cast = a.get("cast")
    if exact:
        integers = beta, a["frac_bits"], a["tie"]
        rk.invert_exact_(state, a["digits"], a["f"], *integers, cast=cast)
    else:
        rk.invert_(state, a["f"], beta, cast=cast)
    effective = rk.effective_beta if exact else float
    keep, grad = 1 - effective(beta), a[grad_of(op)]
    if op.startswith("invert_z"):
        rk.adjoint_(grad, a["vjp"], 1.0, effective(beta), a["seed"])
        grad *= keep
    elif "z0" in op:
        grad.copy_((keep * grad + a["grad_y"]) + a["vjp"].to(grad.dtype))
    else:
        rk.adjoint_(grad, a["vjp"], keep, effective(a["next_beta"]), a["seed"])


def assert_merged_is_unfused(op: str, arguments: dict[str, object], backend: str) -> None:
    want = copies(arguments)
    unfused(op, want)
    with rk.backend(backend):
        result = call(op, arguments)
    assert result is arguments[state_of(op)]
    assert_same_outcome(outcome(arguments, None), outcome(want, None), (op, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beta", [0.5, 0.8, 0.7312, 1.3])
@pytest.mark.parametrize("op", PASSES)
def test_same_bits_as_the_ops_one_after_the_other(op: str, beta: float, backend: str) -> None:
    for size in (0, 1, 33, 1003):
        for f, vjp in ((BF16, BF16), (BF16, F32), (F32, F32)):
            arguments = good_arguments(op, (size,), f=f, cast=f, vjp=vjp, beta=beta)
            assert_merged_is_unfused(op, arguments, backend)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize(("state", "f"), FLOAT_PAIRS, ids=str)
@pytest.mark.parametrize("op", FLOAT_PASSES)
def test_float_types(op: str, state: torch.dtype, f: torch.dtype, backend: str) -> None:
    for cast in casts(f):
        for vjp in dict.fromkeys((f, F64 if f == F64 else F32)):
            options = {"state": state, "f": f, "cast": cast, "vjp": vjp}
            check(op, good_arguments(op, (257,), **options), "cpu", backend)
            check(op, any_bits(good_arguments(op, (257,), **options)), "cpu", backend)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize("f", EXACT_F, ids=str)
@pytest.mark.parametrize("op", EXACT_PASSES)
def test_exact_types(op: str, f: torch.dtype, backend: str) -> None:
    for cast in casts(f):
        for vjp in dict.fromkeys((f, F32)):
            arguments = good_arguments(op, (600,), f=f, cast=cast, vjp=vjp)
            check(op, any_bits(arguments), "cpu", backend)


@given(
    op=st.sampled_from(PASSES),
    beta=st.sampled_from(BETAS),
    n=st.integers(0, 300),
    offset=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_any_bits(op: str, beta: float, n: int, offset: int, seed: int) -> None:
    check(op, any_bits(good_arguments(op, (n,), beta=beta), seed), "cpu", "cpu", offset=offset)


def test_gradients_keep_float64_betas() -> None:
    """A beta that was rounded to float32 on the way would show in float64 gradients."""
    for op in FLOAT_PASSES:
        arguments = good_arguments(op, (100,), state=F64, f=F64, cast=F64, beta=0.7312)
        assert_merged_is_unfused(op, arguments, "cpu")


# ---- against autograd ------------------------------------------------------------------------


def cell(weight: Tensor, x: Tensor) -> Tensor:
    """A contractive f with a Jacobian that depends on where it is taken."""
    return torch.tanh(x @ weight)


def unrolled(weight: Tensor, z0: Tensor, betas: list[float]) -> Tensor:
    """The solve with stored activations."""
    y = z = z0
    for beta in betas:
        y = (1 - beta) * y + beta * cell(weight, z)
        z = (1 - beta) * z + beta * cell(weight, y)
    return z


def vjp(weight: Tensor, at: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """f at a state, and the seed times its Jacobian there."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        value = cell(weight, at)
    (product,) = torch.autograd.grad(value, at, seed)
    return value.detach(), product


def walk_back(weight: Tensor, y: Tensor, z: Tensor, grad_z: Tensor, betas: list[float]) -> Tensor:
    """The gradient of the start, by the three passes; y and z end there."""
    grad_y, seed = torch.zeros_like(grad_z), betas[-1] * grad_z
    for n in reversed(range(len(betas))):
        f, product = vjp(weight, y, seed)
        rk.invert_z_adjoint_y_(z, f, betas[n], grad_y, product, seed)
        f, product = vjp(weight, z, seed)
        if n > 0:
            rk.invert_y_adjoint_z_(y, f, betas[n], grad_z, product, betas[n - 1], seed)
        else:
            rk.invert_y_adjoint_z0_(y, f, betas[n], grad_z, grad_y, product)
    return grad_z


@pytest.mark.parametrize("betas", [[0.5] * 6, [0.7312] * 4, [0.3, 0.8, 1.2, 0.5]], ids=str)
def test_the_passes_are_the_gradient_of_the_unrolled_solve(betas: list[float]) -> None:
    """float64, where the inverse loses little: autograd through the stored solve."""
    torch.manual_seed(0)
    weight = torch.randn(24, 24, dtype=F64) / 24**0.5
    z0 = torch.randn(8, 24, dtype=F64, requires_grad=True)
    towards = torch.randn(8, 24, dtype=F64)
    (expected,) = torch.autograd.grad((unrolled(weight, z0, betas) * towards).sum(), z0)
    with torch.no_grad():
        y = z = z0.detach()
        for beta in betas:
            y = torch.lerp(y, cell(weight, z), beta)
            z = torch.lerp(z, cell(weight, y), beta)
        y, z = y.clone(), z.clone()
    got = walk_back(weight, y, z, towards.clone(), betas)
    # tanh: slopes of at most 1, which change by at most 0.77 of what is moved.
    size = float(torch.linalg.matrix_norm(weight, 2))
    magnitude = float(z0.detach().abs().max())
    back = reconstruction_bound(F64, betas, len(betas), lipschitz=size, magnitude=magnitude)
    assert max((y - z0).abs().max(), (z - z0).abs().max()) <= back
    bound = gradient_bound(F64, back, len(betas), curvature=0.77 * size**2, terms=24)
    assert bound < 0.1  # it says something
    assert_within([got], [expected], bound)


class _ExactUpdate(torch.autograd.Function):
    """The exact update as a node of autograd's graph, whose derivative is that of real numbers."""

    @staticmethod
    def forward(ctx, state, f, new, keep, beta):
        ctx.factors = keep, beta
        return new

    @staticmethod
    def backward(ctx, grad):
        keep, beta = ctx.factors
        return keep * grad, beta * grad, None, None, None


@pytest.mark.parametrize("beta", [0.5, 0.8, 0.7312, 1.2])
def test_exact_gradients_are_bitwise_those_of_stored_activations(beta: float) -> None:
    """autograd over the stored exact states, and the walk back over the states that return."""
    torch.manual_seed(1)
    depth, bits = 8, 20
    weight = torch.randn(24, 24) / 24**0.5
    keep, effective = 1 - rk.effective_beta(beta), rk.effective_beta(beta)
    start = rk.quantize(torch.randn(8, 24), bits)
    y, z = start.clone(), start.clone()
    flag = torch.zeros(1, dtype=torch.int32)
    digits = torch.empty(depth, 2, rk.digit_bytes(y.numel(), beta), dtype=torch.uint8)

    def step(state, other, plane, tie, at, node):
        value = cell(weight, at.view_as(at))
        with torch.no_grad():
            seen = torch.empty_like(value)
            rk.update_exact_(state, plane, flag, value, beta, bits, tie, cast=seen)
        return _ExactUpdate.apply(node, value, seen, keep, effective)

    z0 = rk.dequantize(start, bits).requires_grad_()
    y_node = z_node = z0
    for n in range(depth):
        y_node = step(y, z, digits[n, 0], n % 2, z_node, y_node)
        z_node = step(z, y, digits[n, 1], (n + 1) % 2, y_node, z_node)
    towards = torch.randn(8, 24)
    (expected,) = torch.autograd.grad(z_node, z0, towards)

    grad_z, grad_y = towards.clone(), torch.zeros_like(towards)
    seed, seen = torch.tensor(effective) * grad_z, rk.dequantize(y, bits)
    for n in reversed(range(depth)):
        ties = n % 2, (n + 1) % 2
        f, product = vjp(weight, seen, seed)
        args = (digits[n, 1], f, beta, bits, ties[1], grad_y, product)
        rk.invert_z_adjoint_y_exact_(z, *args, seed, cast=seen)
        f, product = vjp(weight, seen, seed)
        args = (digits[n, 0], f, beta, bits, ties[0], grad_z)
        if n > 0:
            rk.invert_y_adjoint_z_exact_(y, *args, product, beta, seed, cast=seen)
        else:
            rk.invert_y_adjoint_z0_exact_(y, *args, grad_y, product)
    assert torch.equal(y, start)
    assert torch.equal(z, start)
    assert flag.item() == 0
    assert torch.equal(grad_z, expected)
