"""The residual: correct norms, with the same bits on every backend and number of threads."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import revdeq_kernels as rk
from tests.conftest import BACKENDS, FLOAT_PAIRS, random_state, same_bits
from tests.tolerances import norm_error

KERNELS = [name for name in BACKENDS if name != "reference"]
F32, F64 = torch.float32, torch.float64


def by(backend: str, z: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    with rk.backend(backend):
        return rk.residual(z, f)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 4095, 4096, 4097, 8192, 12_345])
def test_sizes(backend: str, n: int) -> None:
    """Columns, rows and chunks that are whole, short by one, or begun."""
    z, f = random_state(n, F32), random_state(n, F32, seed=1)
    assert same_bits(by(backend, z, f), by("reference", z, f))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("z", "f"), FLOAT_PAIRS, ids=str)
def test_types(backend: str, z: torch.dtype, f: torch.dtype) -> None:
    a, b = random_state(5000, z), random_state(5000, f, seed=1)
    assert same_bits(by(backend, a, b), by("reference", a, b))


def test_more_than_a_chunk_of_chunks() -> None:
    """Over 2**20 elements there are more sums than one row of the last step has columns."""
    n = 4096 * 256 + 4096 * 3 + 77
    z, f = random_state(n, F32), random_state(n, F32, seed=1)
    assert same_bits(by("cpu", z, f), by("reference", z, f))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads: int) -> None:
    before = torch.get_num_threads()
    z, f = random_state(300_001, F32), random_state(300_001, torch.bfloat16, seed=1)
    try:
        torch.set_num_threads(threads)
        assert same_bits(by("cpu", z, f), by("reference", z, f))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [1, 300, 20_000])
def test_norms(backend: str, n: int) -> None:
    """Against sums without rounding errors."""
    z, f = random_state(n, F32), random_state(n, F32, seed=1)
    got = by(backend, z, f)
    assert got.dtype == F64
    assert got.shape == (2,)
    exact_z, exact_f = z.double().tolist(), f.double().tolist()
    wants = (
        math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(exact_z, exact_f, strict=True))),
        math.sqrt(math.fsum(b * b for b in exact_f)),
    )
    for value, want in zip(got.tolist(), wants, strict=True):
        assert abs(value - want) <= norm_error(n) * want


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 4095, 4100])
def test_what_is_not_finite_shows(backend: str, bad: float, place: int) -> None:
    z, f = torch.ones(4101), torch.ones(4101)
    z[place] = bad
    difference, size = by(backend, z, f).tolist()
    assert math.isnan(difference) if math.isnan(bad) else difference == math.inf
    assert size == math.sqrt(4101)
    z[place], f[place] = 1.0, bad
    assert not math.isfinite(by(backend, z, f)[1].item())


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtypes", FLOAT_PAIRS, ids=str)
def test_what_is_not_finite_is_the_same_everywhere(
    backend: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Differences that are NaN or overflow, and squares that do: in a whole chunk, and in part."""
    inf, nan, most = math.inf, math.nan, [torch.finfo(dtype).max for dtype in dtypes]
    pairs = [(inf, inf), (inf, -inf), (nan, 0), (0, nan), (0, inf), (-inf, nan)]
    pairs += [(most[0], -most[1]), (most[0], 0), (0, most[1])]
    for (a, b), place in itertools.product(pairs, (300, 4097)):
        z, f = torch.ones(4100, dtype=dtypes[0]), torch.ones(4100, dtype=dtypes[1])
        z[place], f[place] = a, b
        got, want = by(backend, z, f), by("reference", z, f)
        assert torch.equal(got.nan_to_num(nan=-1.0), want.nan_to_num(nan=-1.0)), (a, b)
        expected = z.double() - f.double()
        assert got[0].isnan() == expected.isnan().any() and got[1].isnan() == math.isnan(b)


@given(
    dtypes=st.sampled_from(FLOAT_PAIRS),
    n=st.integers(0, 600),
    shift=st.integers(-140, 120),
    seed=st.integers(0, 2**31),
)
def test_any_magnitude(
    dtypes: tuple[torch.dtype, torch.dtype], n: int, shift: int, seed: int
) -> None:
    z, f = (
        (random_state(n, F64, seed + k) * 2.0**shift).to(dtype) for k, dtype in enumerate(dtypes)
    )
    assert same_bits(by("cpu", z, f), by("reference", z, f))


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_sum_in_order_of_memory(backend: str) -> None:
    z, f = random_state((2, 3, 50, 7), F32), random_state((2, 3, 50, 7), F32, seed=1)
    last = torch.channels_last
    moved = by(backend, z.contiguous(memory_format=last), f)
    flat = z.permute(0, 2, 3, 1).reshape(-1), f.permute(0, 2, 3, 1).reshape(-1)
    assert same_bits(moved, by("reference", *flat))
    with pytest.raises(ValueError, match="z: expected a dense tensor"):
        by(backend, z[..., ::2], f[..., ::2])


def test_the_result_of_equal_tensors_is_zero() -> None:
    z = random_state(5000, F32)
    for backend in BACKENDS:
        assert by(backend, z, z.clone())[0].item() == 0.0
        assert by(backend, z, z)[0].item() == 0.0  # both are only read: they may be one tensor
