"""The CUDA and the Triton kernels on a GPU, against the reference on the CPU, bit for bit.

The checks are those of device_checks.py, which test_device_checks.py makes on the CPU. Tests with
"sanitize" in their names are small, for a run under compute-sanitizer. What needs CUDA streams,
graphs and torch.compile is in test_cuda_runtime.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from revdeq_kernels.core import first_use
from tests.ops.arguments import (
    EXACT_OPS,
    FLOAT_OPS,
    OVERLOADS,
    exact_cases,
    float_cases,
    good_arguments,
)
from tests.ops.device_checks import (
    FORM_BETAS,
    SIZES,
    TAILS,
    any_bits,
    check,
    check_flag,
    check_large_exact,
    check_large_update,
    check_layouts,
    check_round_trip,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
    pytest.mark.filterwarnings("default"),  # a GPU machine brings a torch of its own choice
]

GPU = "cuda:0"
BACKENDS = ["cuda", "triton"] if torch.version.hip is None else ["triton"]
LARGE = 2**31 + 1000
LARGE_BYTES = 40e9

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_op = pytest.mark.parametrize("op", OVERLOADS)


def check_sizes(op: str, backend: str, **options: Any) -> None:
    """Triton compiles anew for a size of 1 and for multiples of 16, so it gets two of one kind."""
    for size in SIZES if backend == "cuda" else (33, SIZES[-1]):
        arguments = good_arguments(op, (size,), **options)
        check(op, any_bits(arguments), GPU, backend)
        if size < SIZES[-1]:
            check(op, arguments, GPU, backend)


# ---- every combination of types --------------------------------------------------------------


@every_backend
@pytest.mark.parametrize(("state", "f", "cast"), float_cases(), ids=str)
@pytest.mark.parametrize("op", FLOAT_OPS)
def test_float_types(
    op: str, state: torch.dtype, f: torch.dtype, cast: torch.dtype | None, backend: str
) -> None:
    for beta in (0.8, 1.3):
        check_sizes(op, backend, state=state, f=f, cast=cast, beta=beta)


@every_backend
@pytest.mark.parametrize(("f", "cast"), exact_cases(), ids=str)
@pytest.mark.parametrize("op", EXACT_OPS)
def test_exact_types(op: str, f: torch.dtype, cast: torch.dtype | None, backend: str) -> None:
    for beta in (0.5, 0.8, 0.7312) if backend == "cuda" else (0.8,):
        check_sizes(op, backend, f=f, cast=cast, beta=beta)


@every_backend
@pytest.mark.parametrize("beta", FORM_BETAS)
@pytest.mark.parametrize("op", EXACT_OPS)
def test_exact_betas(op: str, beta: float, backend: str) -> None:
    for tie in (0, 1):
        check_sizes(op, backend, beta=beta, tie=tie)


@every_backend
@pytest.mark.parametrize("f", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", ["quantize", "dequantize"])
def test_conversions(op: str, f: torch.dtype, backend: str) -> None:
    for bits in (0, 16, 30):
        check_sizes(op, backend, f=f, frac_bits=bits)
    check_sizes(op, backend, f=f, optional=False)


@every_backend
def test_conversion_to_float64(backend: str) -> None:
    for bits in (0, 16, 30):
        check_sizes("dequantize", backend, f=torch.float64, frac_bits=bits)


# ---- sizes and places ------------------------------------------------------------------------


@every_backend
@every_op
def test_sizes(op: str, backend: str) -> None:
    for size in SIZES:
        check(op, good_arguments(op, (size,)), GPU, backend)
    check(op, good_arguments(op, ()), GPU, backend)


@every_backend
@every_op
def test_misaligned_views(op: str, backend: str) -> None:
    for offset in (1, 2, 3):
        for size in (*TAILS, 4096):
            check(op, good_arguments(op, (size,)), GPU, backend, offset=offset)


@pytest.mark.skipif("cuda" not in BACKENDS, reason="the C++ kernels are for NVIDIA GPUs")
@pytest.mark.parametrize("beta", FORM_BETAS)
@pytest.mark.parametrize("op", EXACT_OPS)
def test_misaligned_views_of_every_form(op: str, beta: float) -> None:
    for f in (torch.float32, torch.float16):
        arguments = good_arguments(op, (1003,), f=f, cast=torch.float32, beta=beta)
        check(op, any_bits(arguments), GPU, "cuda", offset=1)


@every_backend
@every_op
def test_layouts(op: str, backend: str) -> None:
    check_layouts(op, GPU, backend)


# ---- exact steps -----------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("beta", [0.5, 0.8, 0.7312, 1.3])
def test_round_trip_of_depth_64(beta: float, backend: str) -> None:
    for f in (torch.float32, torch.bfloat16):
        check_round_trip(beta, f, GPU, backend)


@every_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 16385.0, -1e30])
def test_flag(bad: float, backend: str) -> None:
    check_flag(bad, GPU, backend)


# ---- more than 2**31 elements ----------------------------------------------------------------


@pytest.fixture
def _much_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < LARGE_BYTES:
        pytest.skip(
            f"needs {LARGE_BYTES / 1e9:.0f} GB of free GPU memory, there are {free / 1e9:.0f}"
        )
    yield
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("_much_memory")
@every_backend
@pytest.mark.parametrize("op", FLOAT_OPS)
def test_large_float_states(op: str, backend: str) -> None:
    check_large_update(op, LARGE, 2**28, GPU, backend)


@pytest.mark.usefixtures("_much_memory")
@every_backend
def test_large_exact_states(backend: str) -> None:
    check_large_exact(LARGE, 2**28, GPU, backend)


# ---- for compute-sanitizer -------------------------------------------------------------------


@pytest.fixture
def _no_check_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests compare by themselves, and time is short under a sanitizer."""
    monkeypatch.setattr(first_use, "require", lambda *args: None)


@pytest.mark.usefixtures("_no_check_at_first_use")
@every_backend
@every_op
def test_sanitize_tails(op: str, backend: str) -> None:
    for size in (1, 33, 1003):
        check(op, good_arguments(op, (size,)), GPU, backend, guard=0)


@pytest.mark.usefixtures("_no_check_at_first_use")
@every_backend
@every_op
def test_sanitize_misaligned_views(op: str, backend: str) -> None:
    check(op, good_arguments(op, (1003,)), GPU, backend, offset=1, guard=0)


@pytest.mark.skipif("cuda" not in BACKENDS, reason="the C++ kernels are for NVIDIA GPUs")
@pytest.mark.usefixtures("_no_check_at_first_use")
@pytest.mark.parametrize("beta", FORM_BETAS)
@pytest.mark.parametrize("op", EXACT_OPS)
def test_sanitize_every_form(op: str, beta: float) -> None:
    for size in (33, 1003):
        check(op, good_arguments(op, (size,), beta=beta), GPU, "cuda", guard=0)


@pytest.mark.skipif("cuda" not in BACKENDS, reason="the C++ kernels are for NVIDIA GPUs")
@pytest.mark.usefixtures("_no_check_at_first_use")
@pytest.mark.parametrize(("state", "f", "cast"), float_cases(), ids=str)
@pytest.mark.parametrize("op", FLOAT_OPS)
def test_sanitize_float_types(
    op: str, state: torch.dtype, f: torch.dtype, cast: torch.dtype | None
) -> None:
    arguments = good_arguments(op, (1003,), state=state, f=f, cast=cast)
    check(op, arguments, GPU, "cuda", guard=0)
