"""Many gradients in one backward pass: jacobian(vectorize=True), is_grads_batched=True."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

from tests.solver.cells import MLP
from tests.solver.composing import BOUND
from torch_revdeq import fixed_point, solve

F32, F64 = torch.float32, torch.float64
OF_ROWS = [
    (adjoint, state)
    for adjoint in ("hooks", "checkpoint", "backprop", "functional")
    for state in ("exact", F32, F64)
    if (adjoint, state) != ("functional", "exact")
]


def map_of(adjoint: str, state: Any, f: nn.Module) -> Any:
    def run(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        options: dict[str, Any] = {"adjoint": adjoint, "state": state, "max_steps": 3, "beta": 0.4}
        return solve(f, torch.zeros_like(x), x, **options).z

    return run


def cell(state: Any, p: float = 0.3) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    dtype = F64 if state == F64 else F32
    return MLP(4, p=p, dtype=dtype), torch.randn(2, 4, dtype=dtype)


@pytest.mark.parametrize(("adjoint", "state"), OF_ROWS)
def test_rows_of_a_jacobian(adjoint: str, state: Any) -> None:
    """Dropout draws on the way back, too, where batches refuse random numbers."""
    f, x = cell(state)
    run = map_of(adjoint, state, f)
    got, want = (jacobian(run, x, vectorize=vectorize) for vectorize in (True, False))
    # Of each row the same operations, but matrix products of other shapes.
    eps = torch.finfo(want.dtype).eps
    assert (got - want).norm() <= BOUND / torch.finfo(F64).eps * eps * want.norm()


@pytest.mark.parametrize("adjoint", ["hooks", "checkpoint", "backprop", "functional"])
def test_all_gradients_and_halted_samples(adjoint: str) -> None:
    f, x = cell(F64, p=0.0)
    x.requires_grad_()
    options: dict[str, Any] = {"adjoint": adjoint, "state": F64, "max_steps": 4, "beta": 0.4}
    if adjoint != "functional":
        options |= {"tol": 0.3, "per_sample": True}
    z = solve(f, torch.zeros_like(x), x, **options).z
    wrt = [x, *f.parameters()]
    cotangents = torch.randn(5, *z.shape, dtype=F64)
    got = torch.autograd.grad(z, wrt, cotangents, is_grads_batched=True, retain_graph=True)
    rows = [torch.autograd.grad(z, wrt, c, retain_graph=True) for c in cotangents]
    for batched, single in zip(got, zip(*rows, strict=True), strict=True):
        want = torch.stack(single)
        assert (batched - want).norm() <= BOUND * want.norm()


@pytest.mark.parametrize("adjoint", ["checkpoint", "backprop", "functional"])
def test_a_hessian(adjoint: str) -> None:
    f, x = cell(F64, p=0.0)
    run = map_of(adjoint, F64, f)
    found: list[Any] = [
        hessian(lambda x: run(x).square().sum(), x, vectorize=v) for v in (True, False)
    ]
    got, want = found
    assert want.any()
    assert (got - want).norm() <= BOUND * want.norm()


def test_batched_gradients_that_are_differentiated_again() -> None:
    found = []
    for adjoint in ("functional", "backprop"):
        f, x = cell(F64, p=0.0)
        x.requires_grad_()
        z = map_of(adjoint, F64, f)(x)
        rows = torch.eye(8, dtype=F64).view(8, 2, 4)
        (j,) = torch.autograd.grad(z, x, rows, is_grads_batched=True, create_graph=True)
        found.append([j, *torch.autograd.grad(j.square().sum(), [x, *f.parameters()])])
    for a, b in zip(*found, strict=True):
        assert b.any() and (a - b).norm() <= BOUND * b.norm()


@pytest.mark.parametrize("state", ["exact", F32], ids=["exact", "float"])
def test_a_way_back_in_place_takes_one_at_a_time(state: Any) -> None:
    f, x = cell(state)
    run = map_of("reversible", state, f)
    with pytest.raises(RuntimeError, match=r"solve: expected one gradient at a time.*vectorize=F"):
        jacobian(run, x, vectorize=True)
    assert jacobian(run, x).any()


def test_a_limit() -> None:
    f, x = cell(F64, p=0.0)

    def limit(x: Tensor, adjoint: Any) -> Tensor:
        return fixed_point(f, torch.zeros_like(x), x, adjoint=adjoint, tol=1e-9).z

    with pytest.raises(RuntimeError, match=r"fixed_point: expected one gradient at a time"):
        jacobian(lambda x: limit(x, "implicit"), x, vectorize=True)
    found: list[Any] = [
        jacobian(lambda x: limit(x, "phantom"), x, vectorize=v) for v in (True, False)
    ]
    assert found[1].any()
    assert (found[0] - found[1]).norm() <= BOUND * found[1].norm()
