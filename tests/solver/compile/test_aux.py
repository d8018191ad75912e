"""``has_aux``, ``pass_step`` and keywords of f in a compiled model: one graph, eager's bits."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils import _pytree as pytree

from tests.solver.compile.compiling import assert_like_eager
from torch_revdeq import RevDEQ, solve


class Routed(nn.Module):
    """Losses, counts, and a statistic whose memory is laid out otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.of_z, self.of_x = nn.Linear(16, 16), nn.Linear(16, 16)
        self.calls = 0

    def forward(self, z: Tensor, x: Tensor, scale: Any = 1.0) -> tuple[Tensor, dict[str, Any]]:
        h = self.of_z(z) + scale * self.of_x(x)
        aux = {"loss": h.square().mean(), "parts": (h.T, [h.detach().mean(0), (h > 0).sum()])}
        return torch.tanh(h), aux


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.encoder = nn.Linear(16, 16)
        self.layer = RevDEQ(Routed(), has_aux=True, **{"max_steps": 3, **options})

    def forward(self, x: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        z, aux = self.layer(self.encoder(x), **kwargs)
        return z.square().mean() + aux["loss"].sum() + 0.1 * aux["parts"][0].square().sum(), aux


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"aux": "mean", "tol": 1e-2},
        {"aux": "last"},
        {"aux": "stack"},
        {"adjoint": "hooks"},
        {"adjoint": "checkpoint", "aux": "mean"},
        {"adjoint": "backprop", "state": torch.float64},
        {"store_last": 2},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
def test_one_graph_for_aux(options: dict[str, Any], dynamic: bool | None) -> None:
    torch.manual_seed(0)
    model, counter = Model(**options), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=dynamic)
    for rows in (4, 5, 6):
        x = torch.randn(rows, 16)
        assert_like_eager(model, compiled, x)
        with torch.no_grad():
            assert all(map(torch.equal, *(pytree.tree_leaves(run(x)) for run in (model, compiled))))
    # With and without gradients; and a second time where sizes were not dynamic from the start.
    assert counter.frame_count <= (2 if dynamic else 4)


def test_keywords_that_are_tensors_and_numbers() -> None:
    torch.manual_seed(0)
    model = Model()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 16)
    for scale in (torch.rand(4, 1), torch.rand(4, 1), 0.5, 0.25, 0.125):
        assert_like_eager(model, compiled, x, scale=scale)


class Stepped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of_z, self.steps = nn.Linear(16, 16), nn.Embedding(4, 16)

    def forward(self, z: Tensor, x: Tensor, step: int) -> Tensor:
        return torch.tanh(self.of_z(z) + x + self.steps.weight[step])


@pytest.mark.parametrize("options", [{}, {"adjoint": "functional", "state": torch.float64}])
def test_the_number_of_the_step(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    rng = "none" if options else "auto"
    layer = RevDEQ(Stepped(), max_steps=4, pass_step=True, rng=rng, **options)
    x = torch.randn(4, 16)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for a, b in zip(
        *(torch.autograd.grad(run(x).sum(), list(layer.parameters())) for run in (layer, compiled)),
        strict=True,
    ):
        assert (a - b).norm() <= 2.0**-40 * b.norm() if options else torch.equal(a, b)


@pytest.mark.parametrize(
    "options",
    [{"aux": "stack", "tol": 1e-3}, {"adjoint": "functional", "state": torch.float64}],
    ids=["stack with a tol", "functional"],
)
def test_what_a_graph_does_not_know_beforehand(options: dict[str, Any]) -> None:
    x, model = torch.randn(4, 16), Model(**options)
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match=r"expected an aux whose shapes are known"):
        whole(x)
    torch.compiler.reset()
    assert_like_eager(model, torch.compile(model, backend="aot_eager"), x)


def test_an_aux_of_another_kind() -> None:
    kind = namedtuple("kind", ["loss"])

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, z: Tensor) -> Any:
            return torch.tanh(self.linear(z)), kind(z.mean())

    f, z0 = Odd(), torch.randn(4, 16)
    assert solve(f, z0, has_aux=True).aux.loss.requires_grad
    compiled = torch.compile(
        lambda z: solve(f, z, has_aux=True).z, backend="aot_eager", fullgraph=True
    )
    with pytest.raises(Exception, match="expected an aux of tensors, tuples, lists and dicts"):
        compiled(z0)


def test_tracing_leaves_nothing_behind() -> None:
    """The compiler evaluates f without data, to see what it returns."""

    class Counting(Routed):
        def forward(self, z: Tensor, x: Tensor, scale: Any = 1.0) -> Any:
            if z.is_meta or type(z) is not Tensor:
                self.calls += 1
            return super().forward(z, x, scale)

    model = Model()
    model.layer.f = Counting()
    torch.compile(model, backend="aot_eager", fullgraph=True)(torch.randn(4, 16))
    assert model.layer.f.calls == 0
