"""adjoint="functional" traced by a compiler: f in the graph, the gradients of eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.solver.compile.compiling import Model, assert_like_eager, whole
from tests.tolerances import assert_within, gradient_bound, reconstruction_bound

F64 = torch.float64


def traced(f: nn.Module | None = None, **options: Any) -> Model:
    """A model whose solve can be traced."""
    given = {"adjoint": "functional", "state": torch.float32, "rng": "none", "max_steps": 2}
    return Model(f, **{**given, "beta": 0.5, **options})


def of_parameters(model: nn.Module, run: Callable[..., Tensor], x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(run(x).square().sum(), list(model.parameters())))


def test_one_graph_with_f_in_it() -> None:
    model, counter = traced(), CompileCounterWithBackend("aot_eager")
    compiled = whole(model, counter)
    for size in (6, 6, 3, 9, 5):
        assert_like_eager(model, compiled, torch.randn(size, 16))
    assert counter.frame_count == 2  # once more for a size that varies
    x = torch.randn(5, 16)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
    assert model.equilibrium.stats.steps == 2


def test_autocast_holds_on_the_way_back() -> None:
    model, x = traced(), torch.randn(6, 16)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [run(x) for run in (whole(model), model)]
    found = [torch.autograd.grad(z.float().sum(), list(model.parameters())) for z in outputs]
    assert all(map(torch.equal, *found))


def test_a_traced_way_back_that_does_not_arrive() -> None:
    model, x = traced(beta=0.9999, max_steps=3), torch.randn(6, 16)
    got = of_parameters(model, whole(model), x)
    assert all(gradient.isnan().all() for gradient in got[:2])  # those before the solve


def test_what_cannot_be_traced() -> None:
    x = torch.randn(6, 16)
    with pytest.raises(Exception, match="rng: expected 'none' with adjoint='functional'"):
        whole(traced(rng="auto"))(x)
    with pytest.raises(Exception, match="check_every: expected to be left out"):
        whole(traced(check_every=2))(x)
    with pytest.raises(Exception, match="mutate a captured Tensor"):
        whole(traced(Normed()))(x).sum().backward()
    with pytest.raises(Exception, match="state: expected a dtype at least as wide as f"):
        whole(traced().double())(x.double())
    hidden = torch.randn(16, requires_grad=True)

    class Reads(nn.Module):
        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(z + x * hidden)

    with pytest.raises(Exception, match="pass it as an argument"):
        whole(traced(Reads()))(x)


class Normed(nn.Module):
    """Counts the batches that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(z + x))


@pytest.mark.slow
def test_with_inductor() -> None:
    model, x = traced(state=F64).double(), torch.randn(6, 16, dtype=F64)
    got = of_parameters(model, whole(model, "inductor"), x)
    # Sums in another order, so also other roundings to walk back from.
    back = reconstruction_bound(F64, 0.5, 2, lipschitz=2.0, magnitude=4.0)
    bound = gradient_bound(F64, back, 2, curvature=2.0, terms=64)
    assert_within(got, of_parameters(model, model, x), bound)
