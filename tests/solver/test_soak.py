"""Long and rough use: exceptions in the middle, threads, no memory left, worker processes.

After all of it gradients have the bits of stored activations, and nothing has piled up.
"""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tests import ROOT
from torch_revdeq import RevDEQ
from torch_revdeq.testing import assert_exact_gradients

ADJOINTS = ("reversible", "hooks", "checkpoint")
WIDTH = 32
GROWTH = 16 * 2**20
"""Bytes that a process may grow by. A state of 4 KiB left by each of 10^4 steps makes 40 MiB."""


class StoppedError(Exception):
    """What an f raises that somebody stops."""


class Cell(nn.Module):
    """A cell that raises in one evaluation of `often`, forward or on the way back; 0 for never."""

    def __init__(self, seed: int, often: int) -> None:
        super().__init__()
        self.of_z, self.of_x = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.random, self.often = random.Random(seed), often

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        if self.often and self.random.randrange(self.often) == 0:
            raise StoppedError
        return torch.tanh(self.of_z(z) + self.of_x(x))


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def train(steps: int, seed: int, failures: list[BaseException], memory: list[int]) -> None:
    """Train steps, of which some are interrupted; every hundredth is held to autograd."""
    try:
        cell = Cell(seed, often=100)
        layers = [RevDEQ(cell, adjoint=adjoint, max_steps=4, beta=0.8) for adjoint in ADJOINTS]
        optimizer = torch.optim.SGD(cell.parameters(), lr=1e-2)
        x = torch.randn(32, WIDTH)
        interrupted = 0
        for step in range(steps):
            optimizer.zero_grad()
            try:
                layers[step % 3](x).square().mean().backward()
                optimizer.step()
            except StoppedError:
                interrupted += 1
            if step % 100 == 0:
                cell.often, often = 0, cell.often
                options: dict[str, Any] = {"beta": 0.8, "max_steps": 4, "state": "exact"}
                options["adjoint"] = ADJOINTS[step // 100 % 3]
                assert_exact_gradients(cell, torch.zeros_like(x), x, **options)
                cell.often = often
            if step in (steps // 5, steps - 1):
                gc.collect()
                memory.append(resident_bytes())
        assert interrupted > steps // 20, "nothing was interrupted: the test tests nothing"
    except BaseException as failure:
        failures.append(failure)


def soak(steps: int, threads: int) -> None:
    failures: list[BaseException] = []
    memory: list[int] = []
    workers = [
        threading.Thread(target=train, args=(steps, seed, failures, memory))
        for seed in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, failures
    early, late = memory[:threads], memory[threads:]
    assert max(late) - max(early) < GROWTH, (early, late)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_two_threads_that_are_interrupted_at_random() -> None:
    soak(120, threads=2)


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("threads", [1, 3])
def test_ten_thousand_steps(threads: int) -> None:
    soak(10_000, threads)


NO_MEMORY = """
import resource
import torch
from torch import nn
from torch_revdeq import solve
from torch_revdeq.testing import assert_exact_gradients

torch.set_num_threads(1)
f = nn.Sequential(nn.Linear(1024, 1024), nn.Tanh())
x = torch.randn(8, 1024)
assert_exact_gradients(f, torch.zeros_like(x), max_steps=4)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 192 * 2**20, resource.RLIM_INFINITY))
raised = []
for adjoint in ("reversible", "hooks", "checkpoint", "backprop"):
    for rows in range(1000, 7000, 2000):
        try:
            z0 = torch.zeros(rows, 1024)
            at = "forward"
            z = solve(f, z0, adjoint=adjoint, max_steps=2).z
            at = "back"
            z.sum().backward()
        except RuntimeError as error:
            assert "memory" in str(error), error
            raised.append((adjoint, at))
        z = z0 = None
        f.zero_grad()
        assert_exact_gradients(f, torch.zeros_like(x), max_steps=4, adjoint=adjoint)
print(sorted(set(raised)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_no_memory_left_in_the_middle_of_a_solve() -> None:
    """It raises torch's own error, and the process goes on with exact gradients."""
    run = subprocess.run(
        [sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "'forward')" in run.stdout and "'back')" in run.stdout, run.stdout


NO_MEMORY_FOR_AN_OP = """
import resource
import torch
import revdeq_kernels as rk

torch.set_num_threads(1)
x = torch.ones(2**24)
rk.quantize(x[:8], 16)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 2**24, resource.RLIM_INFINITY))
try:
    rk.quantize(x, 16)
except torch.OutOfMemoryError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_an_op_without_memory_raises_what_torch_raises() -> None:
    run = subprocess.run(
        [sys.executable, "-c", NO_MEMORY_FOR_AN_OP], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("quantize: out of memory: torch could not allocate the result")


class Equilibria(Dataset[Tensor]):
    """Samples that a worker solves for, with their gradient."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return solved(index)


def solved(seed: int) -> Tensor:
    torch.manual_seed(seed)
    cell, x = Cell(seed, often=0), torch.randn(64, WIDTH, requires_grad=True)
    RevDEQ(cell, max_steps=6)(x).square().sum().backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes(start: str) -> None:
    """In a fresh interpreter: after torch.compile some builds of torch refuse it in a fork."""
    script = f"from tests.solver.test_soak import solve_in_workers; solve_in_workers({start!r})"
    command = [sys.executable, "-c", script]
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr


def solve_in_workers(start: str) -> None:
    """Begun after the parent has solved: it holds threads and tried kernels by then."""
    torch.set_num_threads(1)
    expected = [solved(seed) for seed in range(4)]
    loader = DataLoader(
        Equilibria(), batch_size=None, num_workers=2, multiprocessing_context=get_context(start)
    )
    with torch.random.fork_rng():
        got = list(loader)
    assert all(map(torch.equal, got, expected)), "a worker has other gradients"
    assert len(got) == len(expected)
