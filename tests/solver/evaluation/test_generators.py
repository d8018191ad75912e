"""Generators of devices whose modules do not show them, as torch.mps."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_revdeq import solve
from torch_revdeq.evaluation.rng import RngReplay


class Hidden:
    """What torch.mps has: a generator behind functions, and no current_device."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def get_rng_state(self, device: Any = "mps") -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = "mps") -> None:
        self.generator.set_state(state)

    def manual_seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)


@pytest.mark.parametrize("device", ["mps", "mps:0"])
def test_numbers_come_again(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Hidden()
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    random = RngReplay(torch.device(device), "auto")

    def draw(k: int) -> Tensor:
        random.set(k)
        return torch.rand(4, generator=module.generator)

    first = torch.rand(4, generator=module.generator)
    random.observe_first()
    assert random.active
    drawn = [draw(k) for k in (1, 2)]
    assert not torch.equal(*drawn)
    assert torch.equal(draw(0), first)
    assert all(map(torch.equal, [draw(1), draw(2)], drawn))
    random.restore(random.after)
    assert torch.equal(module.generator.get_state(), random.after[1])


def test_an_f_that_draws_on_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_device_module", lambda _: Hidden())
    random = RngReplay(torch.device("mps"), "auto")
    random.observe_first()
    assert not random.active


def test_the_installed_torch_has_what_is_asked_of_it() -> None:
    """torch.mps imports everywhere; whether it has the functions can be read anywhere."""
    import torch.mps

    for name in ("get_rng_state", "set_rng_state", "manual_seed"):
        assert callable(getattr(torch.mps, name))


def draws_late(z: Tensor, *, step: int) -> Tensor:
    return torch.tanh(z + (torch.rand(()) if step == 1 else 0.0))


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """Another one, alive, and with the generator that all threads share."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.rand, 1).result()
        yield pool


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint"])
def test_what_another_thread_draws_is_not_held_against_f(
    adjoint: Any, thread: ThreadPoolExecutor
) -> None:
    def f(z: Tensor, *, step: int) -> Tensor:
        if step == 1:
            thread.submit(torch.rand, 1).result()
        return torch.tanh(z)

    x = torch.randn(4, 4, requires_grad=True)
    solve(f, x, adjoint=adjoint, max_steps=4, pass_step=True).z.sum().backward()


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint"])
def test_a_late_draw_beside_another_thread_is_found_on_the_way_back(
    adjoint: Any, thread: ThreadPoolExecutor
) -> None:
    x = torch.randn(4, 4, requires_grad=True)
    z = solve(draws_late, x, adjoint=adjoint, max_steps=4, pass_step=True).z
    with pytest.raises(RuntimeError, match=r"random numbers|reversing the"):
        z.sum().backward()


@pytest.mark.usefixtures("alone")
def test_a_late_draw_is_refused_at_once() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="f: expected to draw random numbers in its first"):
        solve(draws_late, x, max_steps=4, pass_step=True)
