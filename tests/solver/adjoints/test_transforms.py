"""torch.func and forward mode: right with backprop over a float state, refused elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap

from tests.solver.cells import MLP
from tests.solver.solving import loop
from tests.tolerances import assert_within, gradient_bound
from torch_revdeq import solve

F64 = torch.float64
PLAIN = {"adjoint": "backprop", "max_steps": 3}


def cell() -> tuple[MLP, Tensor]:
    torch.manual_seed(0)
    return MLP(4, dtype=F64), torch.randn(3, 4, dtype=F64)


def test_the_plain_solve_takes_them_by_functional_call() -> None:
    """Nothing is walked back: roundings of sums alone. Other transforms: test_functional.py."""
    f, x = cell()
    parameters = cast("dict[str, Tensor]", dict(f.named_parameters()))

    def outcomes(run: Callable[..., Tensor]) -> list[Tensor]:
        def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return run(lambda z: functional_call(f, parameters, (z,)), x).square().sum()

        return [
            grad(loss)(parameters, x)["a.weight"],
            jvp(lambda w: loss({**parameters, "a.weight": w}, x), (f.a.weight,), (f.a.weight,))[1],
            vmap(grad(loss), in_dims=(None, 0))(parameters, x)["b.bias"],
            vmap(jacrev(lambda row: run(f, row)))(x),
        ]

    got = outcomes(lambda f, z0: solve(f, z0, **PLAIN).z)
    want = outcomes(lambda f, z0: loop(f, z0, steps=3)[0])
    assert_within(got, want, gradient_bound(F64, 0.0, 3, curvature=0.0, terms=16))


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint", "backprop"])
@pytest.mark.parametrize("transform", [grad, vmap, jacrev], ids=lambda t: t.__name__)
def test_others_are_refused(transform: Callable, adjoint: str) -> None:
    f, x = MLP(4), torch.randn(3, 4)
    with pytest.raises(RuntimeError, match=r"transform of torch.func; choose adjoint='functional'"):
        transform(lambda x: solve(f, x, adjoint=adjoint).z.sum())(x)  # type: ignore[arg-type]


@pytest.mark.parametrize("enabled", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("state", ["exact", torch.float32], ids=str)
def test_a_tangent_is_never_dropped(state: Any, enabled: bool) -> None:
    f, x = MLP(4), torch.randn(3, 4)
    weight = torch.randn(4, 4)
    with torch.set_grad_enabled(enabled), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        for call in (lambda: solve(f, dual, state=state), lambda: solve(f, x, dual, state=state)):
            with pytest.raises(RuntimeError, match=r"forward-mode derivatives; choose"):
                call()
        hidden = forward_ad.make_dual(weight, torch.ones_like(weight))
        with pytest.raises(RuntimeError, match="f: expected to read no tensor with a forward-mode"):
            solve(lambda z: torch.tanh(z @ hidden), x, state=state)
        plain = solve(f, dual, state=torch.float32, adjoint="backprop").z
        assert forward_ad.unpack_dual(plain).tangent is not None


def test_a_tol_inside_a_transform_is_refused() -> None:
    f, x = cell()
    with pytest.raises(RuntimeError, match="tol: expected None inside a transform"):
        vmap(lambda row: solve(f, row, tol=1e-3, **PLAIN).z)(x)


def test_a_batched_gradient_is_an_error() -> None:
    f, x = MLP(4), torch.randn(3, 4, requires_grad=True)
    z = solve(f, x).z
    with pytest.raises(RuntimeError, match="solve: expected one gradient at a time"):
        torch.autograd.grad(z, x, torch.ones(2, 3, 4), is_grads_batched=True)
