"""The peak of memory that a call takes, as the benchmark of the solver counts it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

import revdeq_kernels as rk
from bench.core import memory
from tests import ROOT

CPU = torch.device("cpu")


def test_the_peak_is_what_is_held_at_once() -> None:
    def call() -> tuple[Tensor, Tensor]:
        first, second = torch.empty(1000), torch.empty(500)
        del first
        third = torch.empty(100)
        return second, third

    assert memory.peak_bytes(call, CPU) == 4 * (1000 + 500)


def test_the_peak_counts_what_an_op_holds_inside_and_what_is_returned() -> None:
    x, f, wide = torch.rand(64, 64), torch.rand(64, 64), torch.rand(64, 128)
    assert memory.peak_bytes(lambda: [x.neg(), x.exp()], CPU) == 2 * x.nbytes
    # An f with other strides than the state is copied, which the caller never sees.
    assert memory.peak_bytes(lambda: rk.update_(x, f, 0.5), CPU) == 0
    assert memory.peak_bytes(lambda: rk.update_(x, wide[:, ::2], 0.5), CPU) == x.nbytes


def test_the_peak_does_not_count_what_was_there_before() -> None:
    # One of the blocks takes the place of the first one, which the profiler still knows.
    assert memory.peak_bytes(lambda: torch.empty(10_000), CPU) == 40_000
    there = [torch.empty(10_000) for _ in range(64)]

    def call() -> Tensor:
        there.clear()
        return torch.empty(100)

    assert memory.peak_bytes(call, CPU) == 400


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_what_the_system_counts_holds_what_torch_does_not_allocate() -> None:
    """In a process that has not held more before: this one has."""
    code = (
        "from bench.core.memory import peak_bytes, resident_bytes; import torch\n"
        "call = lambda: bytearray(2**26)\n"
        "print(resident_bytes(call), peak_bytes(call, torch.device('cpu')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    resident, peak = map(int, done.stdout.split())
    # Counts of pages lag behind by some.
    assert 2**26 - 2**20 <= resident < 2**26 + 2**24
    assert peak == 0


def test_the_peak_on_a_gpu_is_that_of_its_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def logged(name: str, value: int | None = None) -> None:
        monkeypatch.setattr(torch.cuda, name, lambda device: (log.append(name), value)[1])

    logged("synchronize")
    logged("memory_allocated", 200)
    logged("reset_peak_memory_stats")
    logged("max_memory_allocated", 700)
    peak = memory.peak_bytes(lambda: log.append("call"), torch.device("cuda"))
    assert peak == 500
    before, after = log[: log.index("call")], log[log.index("call") + 1 :]
    assert before == ["synchronize", "memory_allocated", "reset_peak_memory_stats"]
    assert after == ["synchronize", "max_memory_allocated"]
