"""Memory by the allocator's count, and what the solver adds to f."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.core.memory import peak_bytes
from tests.solver.memory import HIDDEN, model, peak
from torch_revdeq import solve

CPU = torch.device("cpu")


@pytest.mark.parametrize("adjoint", ["reversible", "functional"])
@pytest.mark.parametrize("beta", [0.3, 0.2])
@pytest.mark.parametrize("state", [torch.float32, torch.float64], ids=str)
def test_float_states_take_the_same_memory_at_any_depth(
    state: torch.dtype, beta: float, adjoint: str
) -> None:
    """With check=False, because at this depth the gradient is long lost."""
    options = {"state": state, "beta": beta, "check": False, "adjoint": adjoint}
    assert peak(64, **options) <= 1.05 * peak(2, **options)


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
@pytest.mark.parametrize(("beta", "most"), [(0.5, 0.14), (0.8, 0.34)])
def test_exact_states_grow_by_their_digits_alone(adjoint: str, beta: float, most: float) -> None:
    """Bytes per element of z0 and half step; hooks keep nodes beside, which hold no tensors."""
    elements = 256 * 64
    growth = peak(64, beta=beta, adjoint=adjoint) - peak(2, beta=beta, adjoint=adjoint)
    assert growth <= most * elements * 2 * 62 + 4096


def test_backprop_grows_with_the_depth() -> None:
    """Or the tests above would say nothing."""
    assert peak(16, adjoint="backprop") > 4 * peak(2, adjoint="backprop")
    assert peak(16) < peak(16, adjoint="backprop") / 4


def test_nothing_is_kept_without_grad() -> None:
    f, z0 = model()

    def evaluate(steps: int) -> int:
        with torch.no_grad():
            solve(f, z0, max_steps=steps)
            return peak_bytes(lambda: solve(f, z0, max_steps=steps), CPU)

    assert evaluate(64) == evaluate(2)


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
def test_the_graph_holds_no_activations(adjoint: str) -> None:
    """After the forward pass, what is held is states and digits, far below one f's activations."""
    f, z0 = model()
    held: list[object] = []

    def forward() -> None:
        held.append(solve(f, z0, max_steps=32, adjoint=adjoint))  # type: ignore[arg-type]

    forward()
    stats = held.pop().stats  # type: ignore[attr-defined]
    assert stats.state_bytes < z0.numel() * (8 + 32 * 2 / 8 + 1)


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
@pytest.mark.parametrize("how", ["sum", "mean", "last"])
def test_aux_takes_its_own_memory_once(how: str, adjoint: str) -> None:
    """What it is made of, and its sum: no more at a greater depth than without it."""
    f, z0 = model()

    def grown(has_aux: bool) -> int:
        def call(z: Tensor) -> object:
            h = f[0](z)
            new = f[3](f[2](f[1](h)))
            return (new, h) if has_aux else new

        def train(steps: int) -> None:
            options = {"has_aux": has_aux, "aux": how, "adjoint": adjoint, "max_steps": steps}
            solution = solve(call, z0, **options)
            loss = solution.z.sum() + (solution.aux.sum() if has_aux else 0.0)
            loss.backward()

        train(1)  # the gradients' memory stays
        return peak_bytes(lambda: train(32), CPU) - peak_bytes(lambda: train(4), CPU)

    # Autograd's own sums of "hooks" hold nodes, which are small.
    assert abs(grown(True) - grown(False)) <= HIDDEN / 8


def test_stacked_aux_grows() -> None:
    """Or the test above would say nothing."""
    f, z0 = model()

    def train(steps: int) -> None:
        s = solve(lambda z: (f(z), f[0](z)), z0, has_aux=True, aux="stack", max_steps=steps)
        (s.z.sum() + s.aux.sum()).backward()

    train(1)
    growth = peak_bytes(lambda: train(8), CPU) - peak_bytes(lambda: train(4), CPU)
    assert growth >= 8 * HIDDEN
