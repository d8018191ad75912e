"""Shared by all tests: the backends that can run here, inputs, and fixtures."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

# Without a GPU, Triton's interpreter replaces its compiler. It must be enabled before triton is
# imported, and applies to the whole process.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Processes that run tests in parallel (`pytest -n`) share the cores.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))

from hypothesis import settings

import revdeq_kernels as rk
from revdeq_kernels.core import roles
from revdeq_kernels.core.checks import EXACT_F_DTYPES
from tests.two_gpus import TwoGpus

if "triton" in rk.available_backends("cpu"):
    from tests import interpreter

    interpreter.remember()

# No deadline: the first example of a kernel also compiles or interprets it.
settings.register_profile("default", deadline=None, max_examples=50)
settings.load_profile("default")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> TwoGpus:
    """Two fake GPUs, of which the first is current."""
    gpus = TwoGpus()
    gpus.install(monkeypatch)
    return gpus


FIRST = (
    *("tests/native", "tests/distributed", "tests/bench"),
    *(f"tests/training/test_{name}" for name in ("examples", "scripts", "trainers")),
)
"""Files with few long tests. `make` schedules them first: none should run alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """No garbage collection while tests are imported: it finds little, for a fifth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(autouse=True, scope="module")
def _collect_only_what_the_module_makes() -> None:
    """Exempt what exists before a module's tests from garbage collection.

    That is all tests, and torch with the packages used so far: each full collection would traverse
    it for a second or more. What the tests of a module make and let go of is collected as before.
    """
    gc.collect()
    gc.freeze()


SMALL = {"cell", "models", "solver", "training"}
"""The folders of tests whose tensors are so small that a second thread costs more than it saves."""


@pytest.fixture(autouse=True)
def _one_thread_for_small_cells(request: pytest.FixtureRequest) -> Iterator[None]:
    threads = torch.get_num_threads()
    if request.module.__name__.split(".")[1] in SMALL:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def in_a_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a separate thread, for calls that can corrupt torch's thread-local state.

    If torch.ops raises for a tensor of bits, torch (2.13) fails to print it, and a guard held by
    the traceback leaves the thread without torch.func.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


BACKENDS = rk.available_backends("cpu")
"""The backends for CPU tensors: cpu, triton (if its interpreter is on) and reference."""

FLOAT_PAIRS = roles.FLOAT_PAIRS
EXACT_F = list(EXACT_F_DTYPES)
"""The dtypes of f that the exact ops support."""

BETAS = [0.5, 0.6, 2 / 3, 0.75, 0.8, 0.9, 0.7312, 0.31, 1.2, 1.5, 1.6180339887, 1 - 1 / 256, 0.015]
"""Every form of the exact step, both signs of 1 - beta, bases from 2 to 256."""


def random_state(shape: object, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers in a float dtype; for int32, on the grid of 16 fractional bits."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)  # type: ignore[call-overload]
    return (values * 2**16).to(dtype) if dtype == torch.int32 else values.to(dtype)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run the tests of a module with one torch thread; other processes use the other cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that no other thread runs: earlier tests may have left some, such as inductor's."""
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread()])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors agree bit for bit, treating all NaN as equal."""
    if a.dtype != b.dtype or not torch.equal(a.isnan(), b.isnan()):
        return False
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    nan = a.isnan()
    return torch.equal(a[~nan].view(integers), b[~nan].view(integers))
