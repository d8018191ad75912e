"""Options of a layer that change, or are given for one call, under torch.compile and export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from tests.solver.cells import MLP
from tests.solver.solving import inputs
from torch_revdeq import CaptureError, RevDEQ, set_solver, solve


class Model(nn.Module):
    """A model that reads an option of its layer, and passes another for one call."""

    def __init__(self, **call: Any) -> None:
        super().__init__()
        self.layer, self.call = RevDEQ(MLP(), max_steps=2), call

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, **self.call) * self.layer.max_steps


def _graphs() -> Any:
    torch.compiler.reset()
    return torch._dynamo.testing.CompileCounterWithBackend("eager")  # type: ignore[attr-defined]


def test_an_option_that_is_set_compiles_anew() -> None:
    import torch._dynamo.testing

    model, x, counter = Model(), inputs(), _graphs()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for i, options in enumerate(({}, {"max_steps": 3}, {"tol": 1e-1}, {"beta": 0.7})):
        set_solver(model, **options)
        if i == 3:
            model.layer.state = "float32"
        want = model(x)
        assert torch.equal(compiled(x), want) and counter.frame_count == i + 1
        compiled(x)
        assert counter.frame_count == i + 1


def test_options_of_one_call_in_a_graph() -> None:
    import torch._dynamo.testing

    x, counter = inputs(), _graphs()
    model = Model(beta=0.7, save_at=[1], kwargs=None)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    f = model.layer.f
    want = solve(f, torch.zeros_like(x), x, beta=0.7, max_steps=2).z * 2
    got = compiled(x)
    assert torch.equal(got, want) and torch.equal(model(x), want)
    got.sum().backward()
    gradient, x.grad = x.grad, None
    model(x).sum().backward()
    assert gradient is not None and x.grad is not None and torch.equal(gradient, x.grad)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"max_steps": 0}, "max_steps: expected an integer of at least 1"),
        ({"num_steps": 3}, "num_steps: expected .* pass max_steps="),
        ({"x": 3, "aux": 1.0}, "aux: expected .* both"),
    ],
)
def test_a_call_is_checked_in_a_graph_as_outside(call: dict[str, Any], words: str) -> None:
    class Named(MLP):
        def forward(self, z: Tensor, x: Tensor, aux: float = 1.0) -> Tensor:
            return super().forward(z, x) * aux

    torch.compiler.reset()
    layer = RevDEQ(Named(), max_steps=2)
    for run in (layer, torch.compile(layer, backend="eager", fullgraph=True)):
        with pytest.raises(Exception, match=words):  # the compiler's, around ours
            run(inputs(), **call)


def test_an_exported_program_has_the_options_of_its_call() -> None:
    layer, x = RevDEQ(MLP()).eval(), inputs().detach()
    program = torch.export.export(Model(max_steps=3, rng="none").eval(), (x,))
    assert program is not None
    layer.set_solver(max_steps=3, rng="none")
    program = torch.export.export(layer, (x,))
    assert torch.equal(program.module()(x), layer(x))


def test_a_computed_tensor_that_f_holds_in_a_graph() -> None:
    """It is "hooks" inside of the operator too; what leads past f's parameters is refused."""

    class Held(MLP):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(16, 16)
            self.context: Any = None

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return super().forward(z, x + self.context)

    torch.compiler.reset()
    layer, x = RevDEQ(Held(), max_steps=3), inputs()
    f: Any = layer.f
    found = []
    for run in (layer, torch.compile(layer, backend="eager", fullgraph=True)):
        f.zero_grad()
        x.grad = None
        f.context = torch.sin(f.encoder(x.detach()))
        run(x).square().sum().backward()
        assert layer.stats is not None and layer.stats.adjoint == "hooks"
        found.append([x.grad, *(p.grad for p in f.parameters())])
    assert all(map(torch.equal, *found))
    f.context = torch.sin(x)
    with pytest.raises(CaptureError, match=r"inside torch\.compile"):
        run(x)


def test_a_call_like_the_one_before_compiles_nothing() -> None:
    """Nor does the statistics' turn from None to those of the first call."""
    torch.compiler.reset()
    counter = CompileCounter()
    layer = RevDEQ(MLP(), max_steps=3)
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for _ in range(3):
        compiled(inputs()).sum().backward()
    assert counter.frame_count == 1
