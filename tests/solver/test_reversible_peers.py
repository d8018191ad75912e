"""memcnn, revlib, reformer-pytorch, where installed: what docs/from-reversible.md says of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_revdeq import solve

Stack = Callable[[nn.Module, Tensor, int], Tensor]


def stored(f: nn.Module, x: Tensor, count: int) -> Tensor:
    """Additive couplings, two half steps each, as one writes them."""
    y, z = x.chunk(2, -1)
    for _ in range(count):
        y = y + f(z)
        z = z + f(y)
    return torch.cat([y, z], -1)


def by_memcnn(f: nn.Module, x: Tensor, count: int, **options: Any) -> Tensor:
    memcnn = pytest.importorskip("memcnn", reason="memcnn is not installed")
    h = x.clone().requires_grad_() * 1
    for _ in range(count):
        h = memcnn.InvertibleModuleWrapper(memcnn.AdditiveCoupling(f, f), **options)(h)
    return h


def by_revlib(f: nn.Module, x: Tensor, count: int) -> Tensor:
    revlib = pytest.importorskip("revlib", reason="revlib is not installed")
    return revlib.ReversibleSequential(*[f] * 2 * count, split_dim=1)(x.clone().requires_grad_())


def by_reformer(f: nn.Module, x: Tensor, count: int) -> Tensor:
    library = pytest.importorskip("reformer_pytorch.reversible", reason="it is not installed")
    blocks = nn.ModuleList([nn.ModuleList([f, f]) for _ in range(count)])
    return library.ReversibleSequence(blocks).train()(x.clone()[:, None].requires_grad_())[:, 0]


PEERS = {"memcnn": by_memcnn, "revlib": by_revlib, "reformer": by_reformer}


class Cell(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.dropout, self.dtypes = nn.Dropout(dropout), []

    def forward(self, z: Tensor) -> Tensor:
        out = self.dropout(self.second(torch.tanh(self.first(z))))
        self.dtypes.append(out.dtype)
        return out


def start(dropout: float = 0.0) -> tuple[Cell, Tensor]:
    torch.manual_seed(0)
    return Cell(dropout), torch.randn(16, 64)


def gradient(f: nn.Module, out: Tensor) -> Tensor:
    f.zero_grad()
    out.square().mean().backward()
    return torch.cat([p.grad.flatten() for p in f.parameters() if p.grad is not None]).double()


def distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def solved(f: nn.Module, x: Tensor, count: int, **options: Any) -> Tensor:
    """The pair update in place of the additive one: another function, and the same two streams."""
    y, z = (t.contiguous() for t in x.chunk(2, -1))
    solution = solve(f, z, y0=y, max_steps=count, **options)
    return torch.cat([solution.y, solution.z], -1)


@pytest.mark.parametrize("name", PEERS)
def test_the_drift_of_64_couplings(name: str) -> None:
    """Going back in float32 loses more than storing does; an exact state loses nothing."""
    f, x = start()
    wide = copy.deepcopy(f).double()
    want = gradient(wide, stored(wide, x.double(), 64))
    kept = distance(gradient(f, stored(f, x, 64)), want)
    assert kept < 1e-5
    assert 5 * kept < distance(gradient(f, PEERS[name](f, x, 64)), want) < 1e-3
    ours = [gradient(f, solved(f, x, 64, adjoint=how)) for how in ("reversible", "backprop")]
    assert distance(*ours) < 1e-6  # the same bits, but for the order of sums


@pytest.mark.parametrize("name", PEERS)
def test_dropout(name: str) -> None:
    """The same masks from the same seed: memcnn alone does not draw them again."""
    f, x = start(0.3)

    def of(stack: Stack, **options: Any) -> Tensor:
        torch.manual_seed(1)
        return gradient(f, stack(f, x, 4, **options))

    want = of(stored)
    if name != "memcnn":
        assert distance(of(PEERS[name]), want) < 1e-5
    else:
        for rng in (False, True):
            for keep in (False, True):
                options = {"preserve_rng_state": rng, "keep_input": keep}
                assert 0.2 < distance(of(by_memcnn, **options), want) < 1.0
    assert distance(of(solved), of(solved, adjoint="backprop")) < 1e-6


@pytest.mark.parametrize("name", PEERS)
def test_autocast_is_not_had_again_on_the_way_back(name: str) -> None:
    f, x = start()
    with torch.autocast("cpu", torch.bfloat16):
        out = PEERS[name](f, x, 2)
    there, f.dtypes = {*f.dtypes}, []
    gradient(f, out)
    assert (there, {*f.dtypes}) == ({torch.bfloat16}, {torch.float32})
    f.dtypes = []
    with torch.autocast("cpu", torch.bfloat16):
        out = solved(f, x, 2)
    gradient(f, out)
    assert {*f.dtypes} == {torch.bfloat16}


@pytest.mark.parametrize("name", PEERS)
def test_autograd_grad(name: str) -> None:
    f, x = start()
    loss, parameters = PEERS[name](f, x, 2).sum(), list(f.parameters())
    if name == "memcnn":
        with pytest.raises(RuntimeError, match=r"not compatible with .grad\(\)"):
            torch.autograd.grad(loss, parameters)
    else:
        assert {*torch.autograd.grad(loss, parameters, allow_unused=True)} == {None}
    assert all(g.any() for g in torch.autograd.grad(solved(f, x, 2).sum(), parameters))


def test_memcnn_frees_the_storage_of_its_input() -> None:
    memcnn = pytest.importorskip("memcnn", reason="memcnn is not installed")
    f, x = start()
    memcnn.InvertibleModuleWrapper(memcnn.AdditiveCoupling(f, f))(x)
    assert x.untyped_storage().size() == 0
