"""Exact half steps: the same bits on every backend, and exact reversal at any depth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import revdeq_kernels as rk
from tests.conftest import BACKENDS, BETAS, EXACT_F, random_state

KERNELS = [name for name in BACKENDS if name != "reference"]
FRAC_BITS = 16

betas = st.one_of(st.sampled_from(BETAS), st.floats(0.005, 0.995), st.floats(1.005, 1.995)).filter(
    lambda beta: abs(1 - beta) >= 1 / 256
)


def any_int32(n: int, seed: int) -> torch.Tensor:
    """Any int32 whatever, the two ends among them."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.randint(-(2**31), 2**31, (n,), generator=generator).to(torch.int32)
    state[: min(n, 2)] = torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32)[:n]
    return state


def update(
    backend: str, y: torch.Tensor, f: torch.Tensor, beta: float, tie: int, cast: object = None
) -> list[torch.Tensor]:
    """The new state, the digits, the flag and the cast."""
    state, flag = y.clone(), torch.zeros(1, dtype=torch.int32)
    digits = torch.full((rk.digit_bytes(y.numel(), beta) + 3,), 77, dtype=torch.uint8)
    out = torch.zeros_like(y, dtype=cast or f.dtype)  # type: ignore[call-overload]
    with rk.backend(backend):
        rk.update_exact_(
            state, digits, flag, f, beta, FRAC_BITS, tie, cast=None if cast is None else out
        )
    assert digits[-3:].tolist() == [77] * 3  # just the bytes of this half step are written
    return [state, digits, flag, out]


def invert(
    backend: str, y: torch.Tensor, digits: torch.Tensor, f: torch.Tensor, beta: float, tie: int
) -> list[torch.Tensor]:
    state, out, before = y.clone(), torch.zeros_like(f), digits.clone()
    with rk.backend(backend):
        rk.invert_exact_(state, digits, f, beta, FRAC_BITS, tie, cast=out)
    assert torch.equal(digits, before)
    return [state, out]


def assert_equal(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> None:
    for want, got in zip(expected, actual, strict=True):
        assert want.dtype == got.dtype
        assert torch.equal(want, got)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("f_dtype", EXACT_F)
def test_same_bits_as_the_reference(backend: str, beta: float, f_dtype: torch.dtype) -> None:
    interpreted = backend == "triton"  # some 20 ms per launch
    for n in (33, 1003) if interpreted else (1, 31, 33, 32 * 8 * 5, 1003):
        f = random_state(n, f_dtype, seed=n)
        for tie, y in enumerate((random_state(n, torch.int32), any_int32(n, n))):
            for cast in (f_dtype,) if interpreted else (None, f_dtype, torch.float32):
                expected = update("reference", y, f, beta, tie, cast)
                assert_equal(expected, update(backend, y, f, beta, tie, cast))
            assert_equal(
                invert("reference", expected[0], expected[1], f, beta, tie),
                invert(backend, expected[0], expected[1], f, beta, tie),
            )


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    n=st.integers(0, 600),
    depth=st.integers(1, 64),
    betas=st.lists(betas, min_size=6, max_size=6),
    f_dtype=st.sampled_from(EXACT_F),
    wild=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_inversion(
    backend: str,
    n: int,
    depth: int,
    betas: list[float],
    f_dtype: torch.dtype,
    wild: bool,
    seed: int,
) -> None:
    """Back to the start, from states anywhere in int32, and f out of range, infinite or NaN."""
    if backend == "triton":
        depth = 1 + depth % 4  # interpreted: some 20 ms per launch
    start = any_int32(n, seed) if wild else random_state(n, torch.int32, seed)
    round_trip(backend, start, depth, betas, f_dtype, wild, seed)


# Triton's interpreter takes some seconds for each.
@pytest.mark.parametrize(
    ("backend", "beta"),
    [(b, beta) for b in BACKENDS for beta in (BETAS if b != "triton" else [0.5, 0.8, 0.7312])],
)
def test_inversion_from_depth_64(backend: str, beta: float) -> None:
    start = random_state(97 if backend == "triton" else 1003, torch.int32)
    round_trip(backend, start, 64, [beta], torch.float32, wild=False, seed=1)


def round_trip(
    backend: str,
    start: torch.Tensor,
    depth: int,
    betas: list[float],
    f_dtype: torch.dtype,
    wild: bool,
    seed: int,
) -> None:
    state, kept = start.clone(), []
    with rk.backend(backend):
        for n in range(depth):
            f = random_state(start.shape, f_dtype, seed + n + 1)
            if wild:
                f = f * 10.0 ** (n % 6) / torch.where(f.abs() < 0.01, 0.0, 1.0)
            beta = betas[n % len(betas)]
            digits = torch.empty(rk.digit_bytes(start.numel(), beta), dtype=torch.uint8)
            flag = torch.zeros(1, dtype=torch.int32)
            rk.update_exact_(state, digits, flag, f.to(f_dtype), beta, FRAC_BITS, n % 2)
            kept.append((digits, f.to(f_dtype), beta, n % 2))
        for digits, f, beta, tie in reversed(kept):
            rk.invert_exact_(state, digits, f, beta, FRAC_BITS, tie)
    assert torch.equal(state, start)


@pytest.mark.parametrize("backend", KERNELS)
@settings(max_examples=50)
@given(n=st.integers(1, 400), beta=betas, tie=st.integers(0, 1), seed=st.integers(0, 2**31))
def test_inverse_of_arbitrary_digits(
    backend: str, n: int, beta: float, tie: int, seed: int
) -> None:
    """Digits that no update wrote: no crash, and still the reference's bits."""
    generator = torch.Generator().manual_seed(seed)
    digits = torch.randint(0, 256, (rk.digit_bytes(n, beta),), generator=generator).to(torch.uint8)
    y, f = any_int32(n, seed), random_state(n, torch.bfloat16, seed)
    assert_equal(
        invert("reference", y, digits, f, beta, tie), invert(backend, y, digits, f, beta, tie)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", [0, 500, 1002])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2.0**14, -(2.0**15)])
def test_one_value_out_of_range_raises_the_flag(backend: str, place: int, value: float) -> None:
    y, f = random_state(1003, torch.int32), random_state(1003, torch.float32)
    assert update(backend, y, f, 0.5, 0)[2].item() == 0
    f[place] = value
    state, digits, flag, _ = update(backend, y, f, 0.5, 0)
    assert flag.item() == 1
    assert torch.equal(invert(backend, state, digits, f, 0.5, 0)[0], y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_out_of_range_raises_the_flag(backend: str) -> None:
    y, f = torch.zeros(1003, dtype=torch.int32), torch.zeros(1003)
    for sign in (1, -1):
        y[1000] = sign * 2 * (2**30 - 257)
        assert update(backend, y, f, 0.5, 1)[2].item() == 0
        y[1000] = sign * 2 * (2**30 - 256)
        assert update(backend, y, f, 0.5, 1)[2].item() == 1


def test_threads_share_the_work_without_changing_it() -> None:
    before = torch.get_num_threads()
    y, f = random_state(200_003, torch.int32), random_state(200_003, torch.bfloat16)
    f[150_000] = float("nan")
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for beta in (0.5, 0.8, 0.7312):
                expected = update("reference", y, f, beta, 0, torch.bfloat16)
                actual = update("cpu", y, f, beta, 0, torch.bfloat16)
                assert_equal(expected, actual)
                assert torch.equal(invert("cpu", actual[0], actual[1], f, beta, 0)[0], y)
    finally:
        torch.set_num_threads(before)
