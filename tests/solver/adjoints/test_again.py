"""The way back evaluates f again: where it is another f and the states do not tell, it raises."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.solver.adjoints.evaluated_again import ADJOINTS, Cell, options_of
from torch_revdeq import ReconstructionError, RevDEQ, fixed_point, solve

# ---- aux -----------------------------------------------------------------------------------------


class OfBefore(Cell):
    """A penalty on the change since the evaluation before."""

    before: Any = 0.0

    def forward(self, z: Tensor, x: Tensor) -> Any:
        h = super().forward(z, x)
        aux = (h - self.before).square().mean()
        self.before = h.detach()
        return h, aux


class OfCounter(Cell):
    """A weight that falls with every evaluation."""

    calls = 0

    def forward(self, z: Tensor, x: Tensor) -> Any:
        self.calls += 1
        h = super().forward(z, x)
        return h, 0.5**self.calls * h.square().mean()


class OfGenerator(Cell):
    """Random numbers that nobody replays."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def forward(self, z: Tensor, x: Tensor) -> Any:
        h = super().forward(z, x)
        return h, h.square().mean() * float(self.generator.random())


@pytest.mark.parametrize("make", [OfBefore, OfCounter, OfGenerator])
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_an_aux_that_is_another_on_the_way_back(adjoint: str, make: Callable[[], Cell]) -> None:
    x = torch.randn(4, 8)
    with pytest.raises(RuntimeError, match=r"^f: expected (to return the same|not to read the)"):
        solve(make(), torch.zeros(4, 8), x, has_aux=True, **options_of(adjoint)).aux.backward()


def test_an_aux_that_is_the_same_and_holds_nan() -> None:
    def f(z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(w * z), torch.stack([w.sum(), torch.tensor(float("nan"))])

    w = torch.ones(8, requires_grad=True)
    aux = solve(f, torch.zeros(8), w, has_aux=True, max_steps=3).aux
    aux[0].backward()
    assert w.grad is not None and torch.equal(w.grad, torch.full((8,), 6.0))


# ---- random numbers, and what is not seen by the graph -------------------------------------------


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_random_numbers_from_a_later_evaluation_on(adjoint: str) -> None:
    def f(z: Tensor, x: Tensor, step: int) -> Tensor:
        h = torch.tanh(0.3 * z + x)
        return nn.functional.dropout(h, 0.3) if step else h

    x = torch.randn(4, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="f: expected to draw random numbers in its"):
        solve(f, torch.zeros(4, 8), x, pass_step=True, **options_of(adjoint))


def test_checkpoint_compares_what_f_returns() -> None:
    generator = torch.Generator().manual_seed(0)

    def f(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.3 * z + x) * torch.rand(8, generator=generator)

    x = torch.randn(4, 8, requires_grad=True)
    z = solve(f, torch.zeros(4, 8), x, adjoint="checkpoint").z
    with pytest.raises(RuntimeError, match="f: expected to return the same values"):
        z.sum().backward()
    solve(f, torch.zeros(4, 8), x, adjoint="checkpoint", check=False).z.sum().backward()


# ---- what else f may do --------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_what_hooks_note_of_gradients_stays(adjoint: str) -> None:
    f = Cell()
    f.seen = []  # type: ignore[assignment]

    def call(z: Tensor, x: Tensor) -> Tensor:
        h = f(z, x)
        f.size = h.detach().norm()
        h.register_hook(lambda g: f.seen.append(float(g.norm())))  # type: ignore[operator]
        return h

    x = torch.randn(4, 8)
    if adjoint == "functional":
        pytest.skip("it refuses a function that closes over parameters")
    solve(call, torch.zeros(4, 8), x, **options_of(adjoint)).z.square().sum().backward()
    assert len(f.seen) == 8


def test_containers_among_the_arguments() -> None:
    def f(z: Tensor, notes: dict[str, int]) -> Tensor:
        notes["calls"] = notes.get("calls", 0) + 1
        return 0.5 * z / notes["calls"]

    with pytest.raises(RuntimeError, match="f: expected not to modify the containers"):
        solve(f, torch.ones(3), {"calls": 0})
    with pytest.raises(RuntimeError, match="f: expected not to modify the containers"):
        solve(lambda z, log: (log.append(1), 0.5 * z)[1], torch.ones(3), [])


def test_threads_that_share_a_functional_layer() -> None:
    """The exchange of parameters is undone, whoever else exchanges them."""
    layer = RevDEQ(Cell(), adjoint="functional", state=torch.float32, max_steps=6)
    own, x = {name: id(p) for name, p in layer.named_parameters()}, torch.randn(16, 8)
    parameters = list(layer.parameters())
    errors: list[BaseException] = []

    def serve() -> None:
        try:
            for i in range(10):
                with torch.set_grad_enabled(i % 2 == 0):
                    z = layer(x)
                if z.requires_grad:
                    torch.autograd.grad(z.sum(), parameters)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert own == {name: id(p) for name, p in layer.named_parameters()}


def test_a_limit_in_another_thread() -> None:
    """Autograd numbers its nodes by thread: an argument's have other numbers."""
    f, encoder, found = Cell(), nn.Linear(8, 8), []
    u = torch.tanh(encoder(torch.ones(4, 8)))

    def train() -> None:
        z = fixed_point(f, torch.zeros(4, 8), u).z
        found.extend(torch.autograd.grad(z.sum(), list(encoder.parameters())))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert len(found) == 2 and all(g.abs().sum() > 0 for g in found)


def test_the_error_of_aux_is_a_reconstruction_error() -> None:
    x = torch.randn(4, 8)
    with pytest.raises(ReconstructionError, match="pass_step=True"):
        solve(OfCounter(), torch.zeros(4, 8), x, has_aux=True).aux.backward()
