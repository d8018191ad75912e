"""Every backend on its device, compared to the reference on the CPU, bit for bit.

The same tests run on a CPU and on a GPU, so they are known to work without a GPU; a GPU gets more
and larger tensors. Tests with "sanitize" in their names are small, for runs under
compute-sanitizer. Tests of CUDA streams, graphs and torch.compile are in test_cuda_runtime.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

from revdeq_kernels.core import first_use
from revdeq_kernels.core.roles import EXACT_CASES, FLOAT_CASES
from tests.conftest import BACKENDS
from tests.ops.arguments import (
    CHANNELS,
    EXACT_OPS,
    FLOAT_OPS,
    OVERLOADS,
    good_arguments,
)
from tests.ops.device_checks import (
    FORM_BETAS,
    GPU,
    GPU_BACKENDS,
    TAILS,
    any_bits,
    check,
    check_flag,
    check_large_exact,
    check_large_update,
    check_layouts,
    check_round_trip,
    on_gpus,
)

SIZES = (0, 1, 3, 31, 32, 33, 255, 256, 257, 1_000_003)
LARGE_BYTES = 40e9


class On(NamedTuple):
    """A backend on a device, and what it is tried with."""

    backend: str
    device: str = "cpu"
    sizes: tuple[int, ...] = (0, *TAILS)
    of_types: tuple[int, ...] = TAILS[-1:]
    """The sizes of every combination of types."""
    offsets: tuple[int, ...] = (1, 2, 3)
    betas: tuple[float, ...] = (0.8,)
    ties: tuple[int, ...] = (1,)
    depth: int = 64
    large: tuple[int, int] = (2**13 + 1000, 2**11)
    """Elements of a large tensor, and of the pieces that it is held against."""

    def check_types(self, op: str, **options: Any) -> None:
        """Arguments with any bits and, except for a million elements, ordinary ones."""
        for size in self.of_types:
            arguments = good_arguments(op, (size,), **options)
            check(op, any_bits(arguments), self.device, self.backend)
            if size < SIZES[-1]:
                check(op, arguments, self.device, self.backend)


ON_CPU = {
    "cpu": On("cpu"),
    "triton": On("triton", offsets=(3,)),  # the interpreter takes 100 times as long
    "reference": On("reference", depth=8),
}

OF_A_GPU: Any = {"large": (2**31 + 1000, 2**28), "ties": (0, 1)}

ON_GPU = {
    "cuda": On("cuda", GPU, SIZES, SIZES, betas=(0.5, 0.8, 0.7312), **OF_A_GPU),
    # Triton compiles anew for a size of 1 and for multiples of 16, so it gets two of one kind.
    "triton": On("triton", GPU, SIZES, (33, SIZES[-1]), **OF_A_GPU),
}

HERE = [ON_CPU[name] for name in BACKENDS]
GPUS = [ON_GPU[name] for name in GPU_BACKENDS]


def on(places: list[On]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "on",
        [
            pytest.param(p, marks=on_gpus if p.device == GPU else (), id=f"{p.device}-{p.backend}")
            for p in places
        ],
    )


everywhere = on(HERE + GPUS)
but_interpreted = on([p for p in HERE if p.backend != "triton"] + GPUS)
on_a_gpu = on(GPUS)
with_nvcc = on([p for p in GPUS if p.backend == "cuda"])

every_op = pytest.mark.parametrize("op", OVERLOADS)
every_exact_op = pytest.mark.parametrize("op", EXACT_OPS)
every_float_op = pytest.mark.parametrize("op", FLOAT_OPS)
float_types = pytest.mark.parametrize(("state", "f", "cast"), FLOAT_CASES, ids=str)
every_form = pytest.mark.parametrize("beta", FORM_BETAS)

# ---- every combination of types --------------------------------------------------------------


@everywhere
@float_types
@every_float_op
def test_float_types(
    op: str, state: torch.dtype, f: torch.dtype, cast: torch.dtype | None, on: On
) -> None:
    for beta in (0.8, 1.3):
        on.check_types(op, state=state, f=f, cast=cast, beta=beta)


@everywhere
@pytest.mark.parametrize(("f", "cast"), EXACT_CASES, ids=str)
@every_exact_op
def test_exact_types(op: str, f: torch.dtype, cast: torch.dtype | None, on: On) -> None:
    for beta in on.betas:
        on.check_types(op, f=f, cast=cast, beta=beta)


@everywhere
@every_form
@every_exact_op
def test_exact_betas(op: str, beta: float, on: On) -> None:
    for tie in on.ties:
        on.check_types(op, beta=beta, tie=tie)


@everywhere
@pytest.mark.parametrize("f", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", ["quantize", "dequantize"])
def test_conversions(op: str, f: torch.dtype, on: On) -> None:
    if on.device == "cpu":
        on = on._replace(of_types=(3000,))  # more patterns of bits
    if (op, f) != ("quantize", torch.float64):
        for bits in (0, 16, 30):
            on.check_types(op, f=f, frac_bits=bits)
        on.check_types(op, f=f, optional=False)


# ---- sizes and places ------------------------------------------------------------------------


@everywhere
@every_op
def test_sizes(op: str, on: On) -> None:
    for size in on.sizes[op in CHANNELS :]:  # no beta for no channel
        check(op, good_arguments(op, (size,)), on.device, on.backend)
    check(op, good_arguments(op, ()), on.device, on.backend)


@everywhere
@every_op
def test_misaligned_views(op: str, on: On) -> None:
    for offset in on.offsets:
        for size in TAILS if on.device == "cpu" else (*TAILS, 4096):
            check(op, good_arguments(op, (size,)), on.device, on.backend, offset=offset)


@with_nvcc
@every_form
@every_exact_op
def test_misaligned_views_of_every_form(op: str, beta: float, on: On) -> None:
    for f in (torch.float32, torch.float16):
        arguments = good_arguments(op, (1003,), f=f, cast=torch.float32, beta=beta)
        check(op, any_bits(arguments), on.device, on.backend, offset=1)


@everywhere
@every_op
def test_layouts(op: str, on: On) -> None:
    check_layouts(op, on.device, on.backend)


# ---- exact steps -----------------------------------------------------------------------------


@but_interpreted
@pytest.mark.parametrize("beta", [0.5, 0.8, 0.7312, 1.3])
def test_round_trip(beta: float, on: On) -> None:
    for f in (torch.float32, torch.bfloat16):
        check_round_trip(beta, f, on.device, on.backend, on.depth)


@everywhere
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 16385.0, -1e30])
def test_flag(bad: float, on: On) -> None:
    check_flag(bad, on.device, on.backend)


# ---- large tensors: on a GPU of more than 2**31 elements --------------------------------------


@pytest.fixture
def _much_memory(on: On) -> Iterator[None]:
    if on.device != "cpu":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        if free < LARGE_BYTES:
            needed = f"{LARGE_BYTES / 1e9:.0f} GB of free GPU memory"
            pytest.skip(f"needs {needed}, there are {free / 1e9:.0f}")
    yield
    if on.device != "cpu":
        torch.cuda.empty_cache()


@pytest.mark.usefixtures("_much_memory")
@but_interpreted
@every_float_op
def test_large_float_states(op: str, on: On) -> None:
    check_large_update(op, *on.large, on.device, on.backend)


@pytest.mark.usefixtures("_much_memory")
@but_interpreted
def test_large_exact_states(on: On) -> None:
    check_large_exact(*on.large, on.device, on.backend)


# ---- for compute-sanitizer -------------------------------------------------------------------


@pytest.fixture
def _no_check_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests compare by themselves, and time is short under a sanitizer."""
    monkeypatch.setattr(first_use, "require", lambda *args: None)


unchecked = pytest.mark.usefixtures("_no_check_at_first_use")


@unchecked
@on_a_gpu
@every_op
def test_sanitize_tails(op: str, on: On) -> None:
    for size in (1, 33, 1003):
        check(op, good_arguments(op, (size,)), on.device, on.backend, guard=0)


@unchecked
@on_a_gpu
@every_op
def test_sanitize_misaligned_views(op: str, on: On) -> None:
    check(op, good_arguments(op, (1003,)), on.device, on.backend, offset=1, guard=0)


@unchecked
@with_nvcc
@every_form
@every_exact_op
def test_sanitize_every_form(op: str, beta: float, on: On) -> None:
    for size in (33, 1003):
        check(op, good_arguments(op, (size,), beta=beta), on.device, on.backend, guard=0)


@unchecked
@with_nvcc
@float_types
@every_float_op
def test_sanitize_float_types(
    op: str, state: torch.dtype, f: torch.dtype, cast: torch.dtype | None, on: On
) -> None:
    arguments = good_arguments(op, (1003,), state=state, f=f, cast=cast)
    check(op, arguments, on.device, on.backend, guard=0)
