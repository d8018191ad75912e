"""adjoint="checkpoint": every evaluation that comes again is the one of the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.solver.cells import TwoMaps
from tests.solver.memory import STATE, peak
from tests.solver.solving import assert_alike
from torch_revdeq import solve


class Counting(TwoMaps):
    """Reads the buffer that it counts up, in place or by another tensor."""

    count: Tensor

    def __init__(self, *, in_place: bool) -> None:
        super().__init__(8)
        self.register_buffer("count", torch.zeros(()))
        self.in_place = in_place

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        if self.in_place:
            self.count += 1
        else:
            self.count = self.count + 1
        scale = self.count.clone() if self.in_place else self.count
        return super().forward(z, x) / scale


class Memory(TwoMaps):
    """A running mean of its states, which it reads; filled by the first evaluation."""

    memory: Tensor | None

    def __init__(self) -> None:
        super().__init__(8)
        self.register_buffer("memory", None)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        new = z.detach().mean(0)
        self.memory = new if self.memory is None else 0.9 * self.memory + 0.1 * new
        return super().forward(z + self.memory, x)


class Normed(TwoMaps):
    def __init__(self) -> None:
        super().__init__(8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        # Reads the statistics that it writes, which batch_norm itself does in eval mode only.
        assert self.norm.running_var is not None
        return self.norm(super().forward(z, x)) * (1 + self.norm.running_var.clone())


def spectral() -> TwoMaps:
    f = TwoMaps(8)
    parametrizations.spectral_norm(f.of_z)
    return f


class Noisy(TwoMaps):
    """Its noise is saved for the gradient before it is drawn."""

    def __init__(self) -> None:
        super().__init__(8)
        self.noise = nn.RReLU(0.1, 0.9)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.noise(super().forward(z, x))


CELLS: dict[str, Callable[[], TwoMaps]] = {
    "spectral_norm": spectral,
    "a counter in place": lambda: Counting(in_place=True),
    "a counter replaced": lambda: Counting(in_place=False),
    "a memory": Memory,
    "statistics": Normed,
    "RReLU": Noisy,
}


def solved(f: TwoMaps, x: Tensor, adjoint: Any, **options: Any) -> Tensor:
    torch.manual_seed(1)
    return solve(f, torch.zeros_like(x), x, adjoint=adjoint, max_steps=4, **options).z


@pytest.mark.parametrize("state", ["exact", torch.float32], ids=["exact", "float"])
@pytest.mark.parametrize("name", CELLS)
def test_buffers_and_noise_come_again(name: str, state: Any) -> None:
    def found(adjoint: Any) -> Any:
        f, x = CELLS[name](), torch.randn(6, 8, requires_grad=True)
        z = solved(f, x, adjoint, state=state)
        before = {key: (value, value.clone()) for key, value in f.named_buffers()}
        wrt = [x, *f.parameters()]
        loss = z.square().sum()
        gradients = torch.autograd.grad(loss, wrt, retain_graph=adjoint == "checkpoint")
        if adjoint == "checkpoint":  # a second backward pass, of the same graph
            assert all(map(torch.equal, gradients, torch.autograd.grad(loss, wrt)))
        for key, value in f.named_buffers():  # as if nothing had come again
            assert value is before[key][0] and torch.equal(value, before[key][1])
        return [z, *gradients, dict(f.named_buffers())]

    assert_alike(found, "checkpoint")


def test_buffers_are_put_back_where_f_raises() -> None:
    class Fails(Counting):
        broken = False

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            out = super().forward(z, x)
            if self.broken:
                raise ValueError("broken")
            return out

    f, x = Fails(in_place=True), torch.randn(6, 8)
    z = solved(f, x, "checkpoint")
    f.broken = True
    with pytest.raises(ValueError, match="broken"):
        z.sum().backward()
    assert f.count == 8


def test_a_parameter_that_was_changed() -> None:
    f, x = TwoMaps(8), torch.randn(6, 8)
    z = solved(f, x, "checkpoint")
    with torch.no_grad():
        f.of_z.weight.mul_(2)
    with pytest.raises(
        RuntimeError, match=r"solve: .*: 'of_z.weight' in TwoMaps; .*after backward"
    ):
        z.sum().backward()


def test_a_start_that_was_changed() -> None:
    f, x = TwoMaps(8), torch.randn(6, 8, requires_grad=True)
    z0 = torch.zeros(6, 8)
    z = solve(f, z0, x, adjoint="checkpoint", state=torch.float32, max_steps=2).z
    z0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_second_derivatives() -> None:
    def second(adjoint: Any) -> Any:
        f, x = Noisy().double(), torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
        z = solved(f, x, adjoint)
        (first,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
        return [first, *torch.autograd.grad(first.square().sum(), [x, *f.parameters()])]

    assert_alike(second, "checkpoint")


def test_a_graph_of_some_half_steps_alone() -> None:
    """z after two steps needs nothing of the later ones."""

    def gradients(adjoint: Any) -> Any:
        f, x = Noisy(), torch.randn(6, 8, requires_grad=True)
        saved = solve(f, torch.zeros_like(x), x, save_at=[2], max_steps=4, adjoint=adjoint).saved[0]
        return torch.autograd.grad(saved.sum(), [x, *f.parameters()])

    assert_alike(gradients, "checkpoint")


@pytest.mark.parametrize("state", ["exact", torch.float32], ids=["exact", "float"])
def test_its_memory_grows_by_states(state: Any) -> None:
    """What f reads in each half step, and no activation of it, which are 17 times as large."""
    options: dict[str, Any] = {"adjoint": "checkpoint", "state": state, "beta": 0.2}
    states = (peak(32, **options) - peak(2, **options)) / (60 * STATE)
    assert 0.95 < states < 1.05


class ReadsAndWrites(nn.Module):
    """An f that depends on something it writes: in an attribute, a list, or a tensor."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(4, 4), how
        self.count, self.past = 0, [torch.zeros(4)]
        self.mean: Tensor = torch.zeros(4)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        out = torch.tanh(self.linear(z) + x)
        if self.how == "counter":
            self.count += 1
            return out / self.count
        if self.how == "list":
            out = out + 0.1 * torch.stack(self.past[-2:]).mean(0)
            self.past.append(out.detach().mean(0))
        elif self.how == "attribute":
            out = out + 0.1 * self.mean
            self.mean = 0.9 * self.mean + out.detach().mean(0)
        else:  # in place
            out = out + 0.1 * self.mean
            self.mean.add_(out.detach().mean(0))
        return out


@pytest.mark.parametrize("how", ["counter", "list", "attribute", "in place"])
def test_what_f_reads_and_writes_besides_buffers(how: str) -> None:
    x = torch.randn(3, 4)
    for _ in range(2):  # in a second step of training, too
        f = ReadsAndWrites(how)
        with pytest.raises(RuntimeError, match="f: expected not to read the attributes, conta"):
            solve(f, torch.zeros_like(x), x, adjoint="checkpoint")
