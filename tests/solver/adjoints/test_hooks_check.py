"""With "hooks" too every way back ends at the start, whatever autograd asks for on the way.

Autograd asks for what half steps saved as far as it needs them. Where the first half steps save
nothing, or nothing that a gradient takes, the states of the later ones were not compared with
anything, and a context that had changed since the forward pass gave another gradient in silence.
"""

from __future__ import annotations

import contextlib
import gc
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.solver.cells import MLP
from torch_revdeq import CaptureError, ReconstructionError, RevDEQ, solve

BOTH = pytest.mark.parametrize("adjoint", ["auto", "hooks"])

MAPS: dict[str, Callable[[nn.Linear, Tensor, Tensor], Tensor]] = {
    "add": lambda own, z, context: torch.tanh(0.5 * own(z)) + context,
    "without weights": lambda own, z, context: 0.4 * z.sin() + context,
    "relu": lambda own, z, context: torch.relu(0.3 * z) + context,
    "inside": lambda own, z, context: torch.tanh(0.5 * own(z) + context),
    "clamp": lambda own, z, context: (0.5 * z + context).clamp(-2, 2),
}


class WithContext(nn.Module):
    """A cell whose context is set from outside before every solve."""

    def __init__(self, kind: str, *, frozen: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own, self.kind = nn.Linear(6, 6).requires_grad_(not frozen), kind
        self.context: Any = None

    def forward(self, z: Tensor) -> Tensor:
        return MAPS[self.kind](self.own, z, self.context)


def encoded(cell: WithContext, scale: float, adjoint: Any, **options: Any) -> tuple[Tensor, Any]:
    """The equilibrium for a context, and the encoder that made it."""
    torch.manual_seed(1)
    encoder, x = nn.Linear(6, 6), torch.randn(3, 6)
    cell.context = encoder(scale * x)
    solution = solve(cell, torch.zeros(3, 6), max_steps=5, adjoint=adjoint, **options)
    return solution.z, (encoder, solution.stats)


@BOTH
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", [*MAPS])
def test_a_context_that_changed_before_the_backward_pass(
    kind: str, frozen: bool, adjoint: Any
) -> None:
    """Two forward passes, and one backward pass for both: the first solve meets the second's."""
    cell = WithContext(kind, frozen=frozen)
    first, _ = encoded(cell, 1.0, adjoint)
    second, _ = encoded(cell, -2.0, adjoint)
    with pytest.raises(ReconstructionError, match="did not recover the initial state"):
        (first * second).sum().backward()


@BOTH
@pytest.mark.parametrize("kind", [*MAPS])
@pytest.mark.parametrize("options", [{}, {"backward_steps": 2}], ids=["whole", "two steps"])
def test_each_way_back_is_compared_with_its_start(
    options: dict[str, Any], kind: str, adjoint: Any
) -> None:
    found = []
    for other in (adjoint, "backprop"):
        z, (encoder, stats) = encoded(WithContext(kind, frozen=True), 1.0, other, **options)
        z.square().sum().backward()
        found.append(encoder.weight.grad)
        assert other == "backprop" or stats.reconstruction_error == 0.0
    assert torch.equal(*found)


@BOTH
def test_with_the_last_steps_alone(adjoint: Any) -> None:
    cell = WithContext("without weights")
    z, _ = encoded(cell, 1.0, adjoint, backward_steps=2)
    cell.context = 2 * cell.context.detach()
    with pytest.raises(ReconstructionError):
        z.square().sum().backward()


@BOTH
def test_late_binding_in_a_loop(adjoint: Any) -> None:
    """Each function reads the last w when the backward pass comes."""
    weights, total = torch.randn(3, 6, requires_grad=True), torch.zeros(())
    for k in range(3):
        w = torch.sin(weights * k)
        z = solve(lambda z: 0.5 * torch.tanh(z) + w, torch.zeros(3, 6), adjoint=adjoint).z  # noqa: B023
        total = total + z.square().sum()
    with pytest.raises(ReconstructionError):
        total.backward()


@BOTH
def test_random_numbers_that_torch_does_not_know_of(adjoint: Any) -> None:
    w = torch.sin(torch.randn(3, 6, requires_grad=True))
    drawn = random.Random(0)
    z = solve(lambda z: z.sin() * drawn.random() + w, torch.zeros(3, 6), adjoint=adjoint).z
    with pytest.raises(ReconstructionError):
        z.square().sum().backward()


def test_one_gradient_of_several() -> None:
    """That of w asks for nothing that the maps saved; their bias was changed behind its back."""
    w, own = torch.randn(3, 6, requires_grad=True), nn.Linear(6, 6)
    made = torch.sin(w)
    z = solve(lambda z: 0.4 * torch.tanh(own(z)) + made, torch.zeros(3, 6)).z
    own.bias.data.add_(1.0)
    with pytest.raises(ReconstructionError):
        torch.autograd.grad(z.square().sum(), w)


def test_a_second_backward_pass_is_checked_too() -> None:
    cell = WithContext("without weights")
    z, (encoder, stats) = encoded(cell, 1.0, "hooks")
    loss = z.square().sum()
    loss.backward(retain_graph=True)
    once = encoder.weight.grad.clone()
    loss.backward(retain_graph=True)
    assert stats.reconstruction_error == 0.0 and torch.equal(encoder.weight.grad, 2 * once)
    cell.context = -cell.context
    with pytest.raises(ReconstructionError):
        loss.backward()


# ---- what is left behind -------------------------------------------------------------------------


class Writing(MLP):
    """Its last operation saves what it returns, as tanh and sigmoid do; it may write a buffer."""

    mean: Tensor

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.writes = writes
        self.context: Any = None
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        if self.writes:
            self.mean.lerp_(z.detach().mean(0), 0.1)
        new = torch.tanh(super().forward(z, x))
        return new if self.context is None else new + self.context


def held() -> int:
    """Bytes of all tensors that Python can see."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter)]
    storages = {}
    for t in tensors:
        # Wrappers of a transform have no storage, and others have given theirs away.
        with contextlib.suppress(NotImplementedError, RuntimeError):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("writes", [False, True], ids=["closure", "buffer"])
def test_an_evaluation_that_is_tried_leaves_nothing_behind(writes: bool) -> None:
    f, encoder, x = Writing(writes=writes), nn.Linear(16, 16), torch.randn(64, 16)
    layer, sizes = RevDEQ(f, max_steps=2), []
    for _ in range(6):
        f.context = None if writes else encoder(x)
        layer(x).sum().backward()
        sizes.append(held())
    assert layer.stats is not None
    assert layer.stats.adjoint == ("reversible" if writes else "hooks")
    assert sizes[-1] <= sizes[2]  # less where others let go of something meanwhile


# ---- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ["auto", "hooks", "backprop", "reversible"])
def test_a_tensor_that_another_thread_computed(adjoint: Any) -> None:
    """Threads number their nodes by themselves: one made before may look newer.

    Taken for f's own it would be differentiated in every half step, its hooks called as often.
    """
    torch.manual_seed(0)
    leaf = torch.randn(3, 6, requires_grad=True)
    made, calls, errors = leaf + 1, [], []
    made.register_hook(lambda grad: (calls.append(1), grad.clamp(-0.1, 0.1))[1])

    def run() -> None:
        try:
            z = solve(lambda z: 0.4 * torch.sin(z) + made, torch.zeros(3, 6), adjoint=adjoint).z
            z.square().sum().backward()
        except CaptureError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if adjoint == "reversible":
        assert "computed outside f" in str(errors[0]) and not calls
    else:
        assert not errors and len(calls) == 1
        assert leaf.grad is not None and leaf.grad.abs().max() <= 0.1
