"""The definition itself, compared to real arithmetic with Python's fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revdeq_kernels import digit_base, digit_bytes, effective_beta, reference
from revdeq_kernels.exact_numbers import RANGE, contraction
from tests.conftest import BETAS, EXACT_F, FLOAT_PAIRS, random_state
from tests.tolerances import BETA_ERROR, grid_error, invert_error, round_trip_error, update_error

FRAC_BITS = 16

int32s = st.integers(-(2**31), 2**31 - 1)
betas = st.one_of(st.sampled_from(BETAS), st.floats(0.005, 0.995), st.floats(1.005, 1.995)).filter(
    lambda beta: abs(1 - beta) >= 1 / 256
)


@pytest.mark.parametrize(("state", "f"), FLOAT_PAIRS, ids=str)
@pytest.mark.parametrize("beta", [0.5, 0.8, 0.7312, 1.3])
def test_float_half_steps_are_those_of_real_arithmetic(
    state: torch.dtype, f: torch.dtype, beta: float
) -> None:
    y, v = random_state(500, state), random_state(500, f, seed=1)
    magnitude = float(max(y.abs().max(), v.abs().max()))
    exact_y, exact_v = ([Fraction(x) for x in t.double().tolist()] for t in (y, v))
    updated, inverted = y.clone(), y.clone()
    reference.update_(updated, v, beta)
    reference.invert_(inverted, v, beta)
    b = Fraction(beta)
    for got, back, p, q in zip(
        updated.double().tolist(), inverted.double().tolist(), exact_y, exact_v, strict=True
    ):
        assert abs(Fraction(got) - ((1 - b) * p + b * q)) <= update_error(state, beta, magnitude)
        assert abs(Fraction(back) - (p - b * q) / (1 - b)) <= invert_error(state, beta, magnitude)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("beta", "depth"), [(0.5, 1), (0.5, 8), (0.8, 4), (1.3, 6)])
def test_float_round_trip_errs_as_derived(dtype: torch.dtype, beta: float, depth: int) -> None:
    y = random_state(500, dtype)
    fs = [random_state(500, dtype, seed=n) for n in range(1, depth + 1)]
    magnitude = max(float(t.abs().max()) for t in (y, *fs))
    state = y.clone()
    for f in fs:
        reference.update_(state, f, beta)
    for f in reversed(fs):
        reference.invert_(state, f, beta)
    error = float((state - y).abs().max())
    assert error <= round_trip_error(dtype, beta, depth, magnitude)
    assert depth == 1 or error > 0  # floats do lose bits: the exact ops are there for a reason


@given(y=int32s, f=int32s, beta=betas, tie=st.integers(0, 1))
def test_exact_update_is_the_nearest_grid_point(y: int, f: int, beta: float, tie: int) -> None:
    f = max(-(2**24), min(2**24, f))  # the integers that a float32 holds
    new, digit, flag = exact_update(y, f, beta, tie)
    c = contraction(beta)
    d = c.sign * ((y - f + 2**31) % 2**32 - 2**31)
    d = (d + 2**31) % 2**32 - 2**31
    target = Fraction(d * 2**30, c.q)  # from f, in grid steps: |1-beta| times the distance
    moved = (new - f + 2**31) % 2**32 - 2**31
    assert abs(moved - target) <= Fraction(1, 2)
    if abs(moved - target) == Fraction(1, 2):
        assert (moved > target) == bool(tie)
    assert 0 <= digit < digit_base(beta)
    assert flag == (not (abs(f) < RANGE and abs(new) < RANGE))


@given(y=int32s, f=int32s, beta=betas, tie=st.integers(0, 1))
def test_exact_inverse(y: int, f: int, beta: float, tie: int) -> None:
    new, digit, _ = exact_update(y, f, beta, tie)
    state = torch.tensor([new], dtype=torch.int32)
    digits = torch.zeros(digit_bytes(1, beta), dtype=torch.uint8)
    digits[0] = digit
    value = torch.tensor([f], dtype=torch.float64).float()
    reference.invert_exact_(state, digits, value, beta, 0, tie)
    assert state.item() == y


def exact_update(y: int, f: int, beta: float, tie: int) -> tuple[int, int, bool]:
    """The new state, the digit and the flag of one element, with no fractional bits."""
    state, flag = torch.tensor([y], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    digits = torch.full((digit_bytes(1, beta),), 255, dtype=torch.uint8)
    value = torch.tensor([f], dtype=torch.float64).float()
    reference.update_exact_(state, digits, flag, value, beta, 0, tie)
    assert digits[1:].sum() == 0  # elements that are not there have the digit 0
    return int(state), int(digits[0]), bool(flag)


@given(beta=betas)
def test_effective_beta(beta: float) -> None:
    c = contraction(beta)
    assert abs(effective_beta(beta) - beta) < BETA_ERROR
    assert c.q % 2 == 0
    assert 2**30 < c.q <= 2**38
    assert c.base == -(-c.q // 2**30) <= 256
    assert c.base**c.digits_per_byte <= 256 < c.base ** (c.digits_per_byte + 1)


@pytest.mark.parametrize(
    ("beta", "ratio", "digits"),
    [
        (0.5, 2, 8),
        (0.6, 2.5, 5),
        (2 / 3, 3, 5),
        (0.75, 4, 4),
        (0.8, 5, 3),
        (0.9, 10, 2),
        (1.2, 5, 3),
    ],
)
def test_bases_of_usual_betas(beta: float, ratio: float, digits: int) -> None:
    assert digit_base(beta) == math.ceil(ratio)
    assert contraction(beta).digits_per_byte == digits
    assert contraction(beta).q == ratio * 2**30
    block = 32 * digits
    assert [digit_bytes(n, beta) for n in (0, 1, block, block + 1)] == [0, 32, 32, 64]


@pytest.mark.parametrize("dtype", EXACT_F)
def test_quantize_rounds_to_nearest_even(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 3.25, -3.75, 100.0]).to(dtype)
    assert reference.quantize(x, 0).tolist() == [0, 0, 2, 2, 0, -2, 3, -4, 100]
    assert reference.quantize(x, 2).tolist() == [0, 2, 6, 10, -2, -6, 13, -15, 400]


def test_quantize_beyond_the_range() -> None:
    cases = {
        float("nan"): (0, 1),
        float("inf"): (2**31 - 128, 1),
        -float("inf"): (-(2**31), 1),
        1e30: (2**31 - 128, 1),
        2.0**30 - 256: (2**30 - 256, 1),
        -(2.0**30) + 256: (-(2**30) + 256, 1),
        2.0**30 - 320: (2**30 - 320, 0),
    }
    for value, (fixed, raised) in cases.items():
        flag = torch.zeros(1, dtype=torch.int32)
        got = reference.quantize(torch.tensor([value, 1.0]), 0, flag=flag)
        assert (got.tolist(), flag.item()) == ([fixed, 1], raised), value
    flag = torch.full((1,), 6, dtype=torch.int32)
    reference.quantize(torch.tensor([1e30]), 0, flag=flag)
    assert flag.item() == 7  # other bits stay


def test_dequantize_is_exact_in_float64() -> None:
    y = torch.tensor([-(2**31), -1, 0, 1, 2**31 - 1], dtype=torch.int32)
    assert reference.dequantize(y, 20, torch.float64).tolist() == [v / 2**20 for v in y.tolist()]
    assert reference.dequantize(y, 20).tolist() == [
        float(torch.tensor(v).float()) / 2**20 for v in y.tolist()
    ]


@pytest.mark.parametrize("beta", [0.5, 0.7312, 1.3])
def test_exact_update_follows_the_float_one(beta: float) -> None:
    y, f = random_state(1000, torch.float64), random_state(1000, torch.float32, seed=1)
    state, flag = reference.quantize(y.float(), FRAC_BITS), torch.zeros(1, dtype=torch.int32)
    y = reference.dequantize(state, FRAC_BITS, torch.float64)
    fixed = reference.dequantize(reference.quantize(f, FRAC_BITS), FRAC_BITS, torch.float64)
    digits = torch.empty(digit_bytes(1000, beta), dtype=torch.uint8)
    reference.update_exact_(state, digits, flag, f, beta, FRAC_BITS, 0)
    reference.update_(y, fixed, effective_beta(beta))
    error = (reference.dequantize(state, FRAC_BITS, torch.float64) - y).abs().max()
    assert error <= grid_error(FRAC_BITS) * (1 + 1e-9)
    assert flag.item() == 0
