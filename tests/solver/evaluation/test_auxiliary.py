"""``has_aux``: what f returns beside the state, over the evaluations, and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.solver.solving import assert_alike, found_by
from torch_revdeq import RevDEQ, solve

STEPS = 3
F32, F64 = torch.float32, torch.float64
REDUCTIONS = ("sum", "mean", "last", "stack")
FLOAT = ("reversible", "hooks", "checkpoint", "functional")


class Routed(nn.Module):
    """Losses, a value that is the state itself, counts, and statistics without a gradient."""

    def __init__(self, dtype: torch.dtype = F32) -> None:
        super().__init__()
        self.of_z, self.of_x = (nn.Linear(16, 16, dtype=dtype) for _ in range(2))

    def forward(self, z: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        h = self.of_z(z) + self.of_x(x)
        new = torch.tanh(h)
        aux = {"loss": h.square().mean(), "also": [new, new.sum(0)], "read": z.abs().mean()}
        return new, {**aux, "count": (h > 0).sum(), "on": h > 0, "mean": h.detach().mean(0)}


def weighed(aux: Any) -> Tensor:
    """All that is differentiable in it, with a weight for each number."""
    parts = [t for t in pytree.tree_leaves(aux) if t.requires_grad]
    rows = [(t * torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).view(t.shape)) for t in parts]
    return torch.stack([row.sum() for row in rows]).sum()


def found(adjoint: str, how: str, dtype: torch.dtype, **options: Any) -> dict[str, Any]:
    """Aux, and the gradients of a loss that holds it, by one adjoint."""
    torch.manual_seed(0)
    f, encoder = Routed(dtype), nn.Linear(16, 16, dtype=dtype)
    x, z0 = encoder(torch.randn(4, 16, dtype=dtype)), torch.randn(4, 16, dtype=dtype)
    z0.requires_grad_("backward_steps" not in options)  # which gives the start no gradient
    options = {"max_steps": STEPS, **options}
    solution = solve(f, z0, x, has_aux=True, aux=how, adjoint=adjoint, **options)  # type: ignore[arg-type]
    loss = solution.z.square().mean() + weighed(solution.aux)
    tensors = [*f.parameters(), *encoder.parameters(), *([z0] if z0.requires_grad else [])]
    return {"aux": solution.aux, "grads": torch.autograd.grad(loss, tensors)}


def assert_equal(got: dict[str, Any], want: dict[str, Any]) -> None:
    a, b = (pytree.tree_flatten(x["aux"]) for x in (got, want))
    assert a[1] == b[1]
    for x, y in zip([*a[0], *got["grads"]], [*b[0], *want["grads"]], strict=True):
        assert x.dtype == y.dtype and x.requires_grad == y.requires_grad
        assert torch.equal(x, y)


WITH: dict[str, dict[str, Any]] = {
    "nothing else": {},
    "tol": {"tol": 0.5, "max_steps": 6},
    "per_sample": {"tol": 0.5, "max_steps": 6, "per_sample": True},
    "save_at": {"save_at": [1, 2]},
    "backward_steps": {"backward_steps": 1},
    "beta": {"beta": [0.3, 0.5, 0.8]},
    "learned beta": {"beta": torch.tensor(0.4, requires_grad=True)},
    "one kept graph": {"store_last": 1},
    "three kept graphs": {"store_last": 3},
    "all graphs kept": {"store_last": 2 * STEPS},
}


TAKEN = [
    (name, adjoint)
    for name, options in WITH.items()
    for adjoint in ("reversible", "hooks", "checkpoint")
    if adjoint == "reversible" or "store_last" not in options
]


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize(("name", "adjoint"), TAKEN)
def test_bits_of_stored_activations(adjoint: str, name: str, how: str) -> None:
    want = found("backprop", how, F32, **{**WITH[name], "store_last": 0})
    assert_equal(found(adjoint, how, F32, **WITH[name]), want)


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize("adjoint", FLOAT)
def test_gradients_with_a_float_state(adjoint: str, how: str) -> None:
    """The states come back to within roundings, multiplied by 2 in each of 2 STEPS half steps."""
    got, want = (found(a, how, F64, state=F64) for a in (adjoint, "backprop"))
    for a, b in zip(pytree.tree_leaves(got["aux"]), pytree.tree_leaves(want["aux"]), strict=True):
        assert torch.equal(a, b) and a.requires_grad == b.requires_grad
    for a, b in zip(got["grads"], want["grads"], strict=True):
        assert (a - b).norm() <= 2.0 ** (2 * STEPS + 4) * torch.finfo(F64).eps * b.norm()


def test_the_plain_loop() -> None:
    """What backprop itself is held to: the same sums, with autograd alone."""
    torch.manual_seed(0)
    f, encoder = Routed(F64), nn.Linear(16, 16, dtype=F64)
    x, z0 = encoder(torch.randn(4, 16, dtype=F64)), torch.randn(4, 16, dtype=F64)
    z0.requires_grad_()
    y = z = z0
    seen = []
    for _ in range(STEPS):
        for half in range(2):
            new, aux = f((z, y)[half], x)
            seen.append(aux)
            y, z = (0.5 * y + 0.5 * new, z) if half == 0 else (y, 0.5 * z + 0.5 * new)
    tensors = [*f.parameters(), *encoder.parameters(), z0]
    for how in REDUCTIONS:
        stacked = pytree.tree_map(lambda *t: torch.stack(t), *seen)
        total = pytree.tree_map(lambda *t: torch.stack(t).sum(0), *seen)
        want = {"sum": total, "stack": stacked, "last": seen[-1]}
        want["mean"] = pytree.tree_map(lambda t: t / (2 * STEPS), total)
        loss = z.square().mean() + weighed(want[how])
        grads = torch.autograd.grad(loss, tensors, retain_graph=True)
        got = found("reversible", how, F64, state=F64)
        for a, b in zip(
            [*pytree.tree_leaves(got["aux"]), *got["grads"]],
            [*pytree.tree_leaves(want[how]), *grads],
            strict=True,
        ):
            assert a.dtype == b.dtype
            assert (a.double() - b.double()).norm() <= 2.0**12 * torch.finfo(F64).eps * (
                1 + b.double().norm()
            )


def test_aux_alone_and_the_state_alone() -> None:
    def gradients(adjoint: Any) -> Any:
        f, x = Routed(), torch.randn(4, 16, requires_grad=True)
        s = solve(f, torch.zeros(4, 16), x, has_aux=True, adjoint=adjoint)
        wrt = [x, *f.parameters()]
        alone = torch.autograd.grad(weighed(s.aux), wrt, retain_graph=True)
        return [alone, torch.autograd.grad(s.z.sum(), wrt)]

    assert_alike(gradients, "reversible")


def test_second_derivatives_run_through_it() -> None:
    def second(adjoint: Any) -> Any:
        f, x = Routed(F64), torch.randn(4, 16, dtype=F64, requires_grad=True)
        z0 = torch.zeros(4, 16, dtype=F64)
        s = solve(f, z0, x, has_aux=True, adjoint=adjoint, max_steps=2, state=F64)
        (first,) = torch.autograd.grad(s.z.square().mean() + weighed(s.aux), x, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), [x, *f.parameters()])

    for a, b in zip(*found_by(second, "reversible", "backprop"), strict=True):
        assert (a - b).norm() <= 2.0**10 * torch.finfo(F64).eps * b.norm()


def test_without_gradients_and_in_a_layer() -> None:
    f, x = Routed(), torch.randn(4, 16)
    layer = RevDEQ(f, has_aux=True, aux="mean", max_steps=STEPS)
    z, aux = layer(x)
    with torch.no_grad():
        same, other = layer(x)
    assert torch.equal(z, same) and torch.equal(aux["loss"], other["loss"])
    assert aux["loss"].requires_grad and not other["loss"].requires_grad
    assert layer.solve(x).aux.keys() == aux.keys()


def test_what_f_writes_into_later_is_copied() -> None:
    """One buffer that f returns every time and counts up."""
    count = torch.zeros(3)

    def f(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            count.add_(1)
        return 0.5 * z, count

    want = {"sum": 21.0, "mean": 3.5, "last": 6.0}
    for how, value in want.items():
        count.zero_()
        with torch.no_grad():
            aux = solve(f, torch.ones(3), has_aux=True, aux=how, max_steps=3).aux  # type: ignore[arg-type]
        assert torch.equal(aux, torch.full((3,), value))
    count.zero_()
    with torch.no_grad():
        aux = solve(f, torch.ones(3), has_aux=True, aux="stack", max_steps=3).aux
    assert torch.equal(aux[:, 0], torch.arange(1.0, 7.0))


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint", "backprop"])
def test_errors(adjoint: str) -> None:
    options: dict[str, Any] = {"has_aux": True, "adjoint": adjoint}
    z0 = torch.zeros(3)
    with pytest.raises(
        TypeError, match=r"f: expected a result \(z, aux\) with has_aux=True.*got Te"
    ):
        solve(lambda z: z, z0, **options)
    with pytest.raises(TypeError, match=r"expected a result \(z, aux\).*got tuple of 3; return"):
        solve(lambda z: (z, z, z), z0, **options)
    with pytest.raises(TypeError, match="f: expected tensors as leaves of aux, got float; make it"):
        solve(lambda z: (z, 0.5), z0, **options)
    with pytest.raises(TypeError, match=r"goes with has_aux=True"):
        solve(lambda z: (z, z), z0, adjoint=adjoint)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="aux: expected one of 'sum', 'mean'"):
        solve(lambda z: (z, z), z0, **{**options, "aux": "max"})
    sizes = iter(range(1, 100))
    with pytest.raises(
        ValueError, match=r"f: expected aux as in the first evaluation, .*return the"
    ):
        solve(lambda z: (z, torch.zeros(next(sizes))), z0, **options)
