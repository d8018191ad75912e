"""What f reads beside its state: every leaf gets its gradient, or the error says why not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.solver.cells import MLP
from tests.solver.solving import (
    REVERSIBLE,
    STEPS,
    Solver,
    assert_same,
    defined,
    gradients,
    inputs,
    run,
)
from tests.tolerances import assert_within, unit_roundoff
from torch_revdeq import CaptureError, solve


@pytest.mark.parametrize("how", REVERSIBLE)
def test_frozen_and_unused_parameters(how) -> None:
    f = MLP()
    f.a.weight.requires_grad_(False)
    f.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    x = inputs()
    assert_same(lambda s: s(f, torch.zeros_like(x), x), how, [x, *f.parameters()])
    assert f.a.weight.grad is None and f.unused.grad is None


@pytest.mark.parametrize("how", REVERSIBLE)
def test_everything_frozen_but_an_argument(how) -> None:
    f, x = MLP().requires_grad_(False), inputs()
    assert_same(lambda s: s(f, torch.zeros_like(x), x), how, [x])


def test_nothing_to_differentiate() -> None:
    f, x = MLP().requires_grad_(False), inputs().detach()
    assert not solve(f, x).z.requires_grad


@pytest.mark.parametrize("how", REVERSIBLE)
def test_a_shared_parameter(how) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
            self.b.weight = self.a.weight

        def forward(self, z: Tensor) -> Tensor:
            return torch.tanh(self.b(torch.tanh(self.a(z))))

    f, x = Shared(), inputs()
    assert_same(lambda s: s(f, x), how, [x, *f.parameters()])


@pytest.mark.parametrize("how", REVERSIBLE)
def test_a_parameter_used_elsewhere_too(how) -> None:
    """Another grouping of a sum of 2 STEPS + 1 parts in float32, so no longer the same bits."""
    f, x = MLP(), inputs()
    wrt = list(f.parameters())
    got = gradients(lambda s: s(f, x) @ f.b.weight, how, wrt)
    want = gradients(lambda s: s(f, x) @ f.b.weight, defined, wrt)
    assert_within(got, want, (2 * STEPS + 1) * unit_roundoff(torch.float32))


@pytest.mark.parametrize("how", REVERSIBLE)
def test_closed_over_leaves(how) -> None:
    f, x = MLP(), inputs()
    weight = torch.randn(16, 16, requires_grad=True)
    wrt = [x, weight, *f.parameters()]
    assert_same(lambda s: s(lambda z: torch.tanh(f(z) @ weight), x), how, wrt)
    assert_same(lambda s: s(lambda z: torch.tanh(f(z) + x), x), how, wrt)  # z0 itself
    assert_same(lambda s: s(lambda z: weight[:6], x), how, [x, weight])  # not even z


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "backprop", "checkpoint"])
def test_a_closed_over_tensor_that_is_no_leaf(adjoint: str) -> None:
    f, w = MLP(), inputs(6, 16)
    z0 = torch.zeros(6, 16)

    def use(how: Callable[..., Tensor]) -> Tensor:
        embedded = torch.sin(w)
        return how(lambda z: f(z, embedded), z0)

    if adjoint == "reversible":
        with pytest.raises(CaptureError, match=r"SinBackward.*pass it as an argument"):
            use(run(adjoint))
        assert_same(lambda s: s(f, z0, torch.sin(w)), run(adjoint), [w, *f.parameters()])
    else:
        assert_same(use, run(adjoint), [w, *f.parameters()])


def test_f_that_returns_a_captured_tensor() -> None:
    w = inputs()
    other = torch.sin(w)
    with pytest.raises(CaptureError):
        solve(lambda z: other, torch.zeros(6, 16), adjoint="reversible")


def test_parameters_that_only_a_later_step_uses() -> None:
    """A router: which expert is used depends on the state."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
            self.calls: list[int] = []

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            chosen = int(z.detach().abs().sum() * 2) % 4
            self.calls.append(chosen)
            return torch.tanh(self.experts[chosen](z) + x)

    f, x = Experts(), inputs()
    z0 = torch.zeros_like(x)
    assert_same(lambda s: s(f, z0, x), run("reversible"), [x, *f.parameters()])
    assert len(set(f.calls[: 2 * STEPS])) > 1  # or this test says nothing


@pytest.mark.parametrize("how", REVERSIBLE)
def test_a_sparse_gradient(how) -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 16, sparse=True)
            self.a = nn.Linear(16, 16)

        def forward(self, z: Tensor) -> Tensor:
            return torch.tanh(self.a(z) + self.table(torch.tensor([1, 1, 2, 0, 3, 1])))

    f, x = Embedded(), inputs()
    wrt = [x, *f.parameters()]
    got = gradients(lambda s: s(f, x), how, wrt)
    want = gradients(lambda s: s(f, x), defined, wrt)
    for a, b in zip(got, want, strict=True):
        assert a is not None and b is not None and a.layout == b.layout
        assert torch.equal(a.to_dense(), b.to_dense())


@pytest.mark.parametrize("how", REVERSIBLE)
def test_an_argument_that_is_no_leaf_and_is_used_twice(how) -> None:
    f, w = MLP(), inputs()
    assert_same(
        lambda s: s(lambda z, x: f(z, x) * torch.cos(x), torch.zeros(6, 16), torch.sin(w)),
        how,
        [w, *f.parameters()],
    )


@pytest.mark.parametrize("how", REVERSIBLE)
@pytest.mark.parametrize(
    "f",
    [
        lambda z: z,
        lambda z: z.T.contiguous().T,
        lambda z: z[:, :1].expand(6, 16),
        lambda z: z.detach() * 0.5,
        lambda z: torch.zeros(6, 16),
        lambda z: z * 0.5 + 1.0,
    ],
    ids=["identity", "transposed", "expanded", "detached", "constant", "linear"],
)
def test_odd_functions(f: Callable[[Tensor], Tensor], how) -> None:
    x = inputs()
    assert_same(lambda s: s(f, x) * x, how, [x])


@pytest.mark.parametrize("how", REVERSIBLE)
def test_gradients_that_autograd_hands_through(how: Solver) -> None:
    """Of z + x both inputs get the same tensor as gradient, which must not be added to in place."""
    x, other = inputs(), torch.randn(6, 16, requires_grad=True)
    assert_same(lambda s: s(lambda z, a, b: z * 0.5 + a + (b + a), x, x, other), how, [x, other])
    assert_same(lambda s: s(lambda z, a: z + a, x, other) * x, how, [x, other])
