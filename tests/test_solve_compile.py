"""torch.compile of f, and of a model around the solver."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from cells import MLP
from torch_revdeq import RevDEQ, solve
from torch_revdeq.testing import assert_exact_gradients

# Dynamo looks at the .grad of every input, and silences torch's warning, but not where warnings
# are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


class Model(nn.Module):
    """A solve between other layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 16), nn.Linear(16, 2)
        self.equilibrium = RevDEQ(MLP(), max_steps=3, beta=0.7)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.relu(self.equilibrium(torch.relu(self.encoder(x)))))


def test_a_compiled_f_is_compiled_once() -> None:
    torch.manual_seed(0)
    f, x = MLP(), torch.randn(6, 16)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, backend=counter)
    assert_exact_gradients(compiled, torch.zeros_like(x), x, max_steps=5)
    count = counter.frame_count
    for _ in range(3):
        solve(compiled, torch.zeros_like(x), x).z.sum().backward()
    assert counter.frame_count == count >= 1


def test_a_compiled_model() -> None:
    torch.manual_seed(0)
    model = Model()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)

    def gradients(run: nn.Module | object, x: Tensor) -> list[Tensor | None]:
        model.zero_grad()
        run(x).square().sum().backward()  # type: ignore[operator]
        return [p.grad for p in model.parameters()]

    counts = []
    for size in (6, 6, 6, 3, 9, 5):
        x = torch.randn(size, 16)
        got, want = gradients(compiled, x), gradients(model, x)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        counts.append(counter.frame_count)
    assert counts[0] == counts[2] >= 2  # before the solve and after it
    assert counts[3] == counts[5] <= 2 * counts[0]  # once more for a size that varies


@pytest.mark.slow
def test_a_compiled_f_with_inductor() -> None:
    torch.manual_seed(0)
    f, x = MLP(), torch.randn(6, 16)
    assert_exact_gradients(torch.compile(f), torch.zeros_like(x), x, max_steps=5)
