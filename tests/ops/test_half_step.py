"""Every backend returns the bits of the reference: float ops and fixed-point conversions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import revdeq_kernels as rk
from tests.conftest import BACKENDS, BETAS, EXACT_F, FLOAT_PAIRS, random_state, same_bits

KERNELS = [name for name in BACKENDS if name != "reference"]
SIZES = [0, 1, 2, 7, 8, 15, 16, 17, 33, 255, 1003, 4096]
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-40, 6e-8, 65520.0, 3e38]

shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


def run(backend: str, op: str, state: torch.Tensor, f: torch.Tensor, beta: float, cast: object):
    """The new state and the cast, by one backend; `cast` is a dtype or None."""
    y = state.clone()
    out = None if cast is None else torch.full_like(y, float("nan"), dtype=cast)  # type: ignore[call-overload]
    with rk.backend(backend):
        assert getattr(rk, op)(y, f, beta, cast=out) is y
    return y, out


def assert_same(backend: str, op: str, *args: object) -> None:
    expected, actual = run("reference", op, *args), run(backend, op, *args)  # type: ignore[arg-type]
    assert same_bits(expected[0], actual[0])
    if expected[1] is not None:
        assert same_bits(expected[1], actual[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", ["update_", "invert_"])
@pytest.mark.parametrize(("state", "f"), FLOAT_PAIRS, ids=str)
def test_dtypes_and_casts(backend: str, op: str, state: torch.dtype, f: torch.dtype) -> None:
    y, v = random_state(1003, state), random_state(1003, f, seed=1)
    for cast in {None, f, torch.float32}:
        if cast == torch.float32 or cast == f or cast is None:
            for beta in (0.5, 0.7312, 1.3):
                assert_same(backend, op, y, v, beta, cast)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", ["update_", "invert_"])
@pytest.mark.parametrize("n", SIZES)
def test_sizes(backend: str, op: str, n: int) -> None:
    for state, f in ((torch.float32, torch.float32), (torch.float64, torch.bfloat16)):
        assert_same(backend, op, random_state(n, state), random_state(n, f, seed=1), 0.8, f)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("state", "f"), FLOAT_PAIRS, ids=str)
def test_special_values(backend: str, state: torch.dtype, f: torch.dtype) -> None:
    y = torch.tensor(SPECIAL, dtype=torch.float64).repeat_interleave(len(SPECIAL)).to(state)
    v = torch.tensor(SPECIAL, dtype=torch.float64).repeat(len(SPECIAL)).to(f)
    for op in ("update_", "invert_"):
        for beta in (0.3, 0.5, 1.25):  # 1 / (1 - beta) is exact for the latter two
            assert_same(backend, op, y, v, beta, torch.float32)


@pytest.mark.parametrize("backend", KERNELS)
@given(data=st.data())
def test_any_bits(backend: str, data: st.DataObject) -> None:
    """Random bit patterns: every exponent, subnormals, infinities and NaN among them."""
    state, f = data.draw(st.sampled_from(FLOAT_PAIRS))
    shape = data.draw(shapes)
    beta = data.draw(st.floats(0, 2, exclude_min=True, exclude_max=True).filter(lambda b: b != 1))
    assume(backend != "triton" or beta >= 2.0**-126)  # a float64 to Triton's interpreter
    op = data.draw(st.sampled_from(["update_", "invert_"]))
    cast = data.draw(st.sampled_from([None, f, torch.float32]))
    seed = data.draw(st.integers(0, 2**31))
    assert_same(backend, op, any_bits(shape, state, seed), any_bits(shape, f, seed + 1), beta, cast)


def any_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 256, (*shape, size), generator=generator).to(torch.uint8)
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", EXACT_F)
def test_quantize(backend: str, dtype: torch.dtype) -> None:
    halves = (torch.arange(-2000, 2000, dtype=torch.float32) / 2).to(dtype)
    wide = any_bits((4000,), dtype, 3)
    for x in (halves, wide, random_state(4003, dtype), random_state(1, dtype)):
        for frac_bits in (0, 12, 30):
            expected, actual = (quantized(name, x, frac_bits) for name in ("reference", backend))
            assert torch.equal(expected[0], actual[0])
            assert torch.equal(expected[1], actual[1])


def quantized(backend: str, x: torch.Tensor, frac_bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    flag = torch.zeros(1, dtype=torch.int32)
    with rk.backend(backend):
        return rk.quantize(x, frac_bits, flag=flag), flag


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dequantize(backend: str, dtype: torch.dtype) -> None:
    y = any_bits((4003,), torch.int32, 5)
    for frac_bits in (0, 12, 30):
        with rk.backend("reference"):
            expected = rk.dequantize(y, frac_bits, dtype)
        with rk.backend(backend):
            assert same_bits(expected, rk.dequantize(y, frac_bits, dtype))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_work_without_changing_it(threads: int) -> None:
    before = torch.get_num_threads()
    n = 300_001
    y, v = random_state(n, torch.float32), random_state(n, torch.bfloat16, seed=1)
    try:
        torch.set_num_threads(threads)
        assert_same("cpu", "update_", y, v, 0.8, torch.bfloat16)
    finally:
        torch.set_num_threads(before)


def test_betas_reach_the_kernels_in_full() -> None:
    """A beta that was rounded to float32 on the way would show in float64 states."""
    y, v = random_state(100, torch.float64), random_state(100, torch.float64, seed=1)
    for backend in KERNELS:
        for beta in BETAS:
            assert_same(backend, "update_", y, v, beta, None)
            assert_same(backend, "invert_", y, v, beta, None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["update_", "invert_"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_recommended_formula_has_the_same_bits(
    backend: str, op: str, dtype: torch.dtype
) -> None:
    """The error for a tensor that requires grad names the differentiable equivalent."""
    state, f = random_state(1003, dtype), random_state(1003, dtype, seed=1)
    for beta in BETAS:
        with rk.backend(backend), pytest.raises(RuntimeError, match="requires grad") as caught:
            getattr(rk, op)(state.clone().requires_grad_(), f, beta)
        formula = str(caught.value).partition("differentiable equivalent: ")[2]
        result = eval(formula, {"state": state, "f": f, "beta": beta})
        assert same_bits(result, run(backend, op, state, f, beta, None)[0])
