"""The equilibrium cell as one op: the bits of solve, torch's requirements on ops, and errors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import revdeq_kernels as rk
from revdeq_kernels.ops.cell import checks as cell_checks
from revdeq_kernels.ops.cell.choice import IMPLEMENTATIONS
from tests.cell.conftest import each
from tests.cell.linear_cells import ACTS, Cell, Outcome, both_ways, make, run
from tests.conftest import same_bits
from torch_revdeq import solve

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

acts = pytest.mark.parametrize("act", list(ACTS))
of_any_features = each(composite=[()], cpu=[()])

# ---- against the solver ----------------------------------------------------------------------


def by_solve(cell: Cell, adjoint: str) -> Outcome:
    """The general solver with the same f, its parameters in float32."""
    leaves = [t.float().requires_grad_() for t in cell.tensors]
    u, w, z0 = leaves
    solution = solve(
        lambda s, u: cell.f(s, u, w),
        z0,
        u,
        beta=cell.beta,
        max_steps=cell.steps,
        state="exact" if cell.state == "exact" else F32,
        frac_bits=cell.frac_bits if cell.state == "exact" else "auto",
        adjoint=adjoint,  # type: ignore[arg-type]
    )
    y, z = solution.y, solution.z
    grad_u, grad_w, grad_z0 = torch.autograd.grad([y, z], leaves, [cell.grad_y, cell.grad_z])
    return Outcome(y.detach(), z.detach(), grad_u.to(cell.u), grad_w.to(cell.w), grad_z0)


@pytest.mark.parametrize("adjoint", ["reversible", "backprop"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@acts
def test_an_exact_cell_has_the_bits_of_solve(act: str, dtype: torch.dtype, adjoint: str) -> None:
    for beta in (0.5, 0.8, 1.3):
        cell = make(21, 32, dtype, act=act, beta=beta, steps=6)
        found = run(cell, implementation="composite"), by_solve(cell, adjoint)
        rows = zip(Outcome._fields, *found, strict=True)
        differ = [name for name, got, want in rows if not torch.equal(got, want)]
        assert not differ, beta


def test_a_float_cell_has_the_bits_of_solve() -> None:
    cell = make(21, 32, F32, state="float32", steps=3)
    got = run(cell, implementation="composite")
    assert all(map(torch.equal, got, by_solve(cell, "reversible")))


# ---- autograd and torch.compile --------------------------------------------------------------


@each(composite=[()], cpu=[()], triton=[()])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_it_has_the_bits_of_eager(dynamic: bool, implementation: str) -> None:
    torch._dynamo.reset()

    def loss(u: Tensor, w: Tensor, z0: Tensor) -> Tensor:
        y, z, *_ = rk.linear_cell_forward(
            *(u, w, z0, 0.5, 3, "silu"), implementation=implementation
        )
        return (z * z).sum() + y.sin().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (6, 9):
        cell = make(rows, 32, F32)
        results = []
        for function in (loss, compiled):
            leaves = [t.clone().requires_grad_() for t in cell.tensors]
            value = function(*leaves)
            results.append([value.detach(), *torch.autograd.grad(value, leaves)])
        assert all(map(same_bits, *results))


@of_any_features
def test_gradients_that_nobody_asked_for_and_that_did_not_arrive(implementation: str) -> None:
    cell = replace(make(6, 16, F32), grad_y=torch.zeros(6, 16))
    want = run(cell, implementation=implementation)
    w = cell.w.clone().requires_grad_()
    options: Any = {"implementation": implementation}
    _, z, *_ = rk.linear_cell_forward(cell.u, w, cell.z0, *cell.numbers[:3], **options)
    assert torch.equal(torch.autograd.grad(z, w, cell.grad_z)[0], want.grad_w)


@of_any_features
def test_a_changed_argument_is_seen_by_autograd(implementation: str) -> None:
    cell = make(6, 16, F32)
    w = cell.w.clone().requires_grad_()
    options: Any = {"implementation": implementation}
    _, z, *_ = rk.linear_cell_forward(cell.u, w, cell.z0, *cell.numbers[:3], **options)
    with torch.no_grad():
        w.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@of_any_features
def test_a_second_derivative_is_refused(implementation: str) -> None:
    cell = make(6, 16, F32)
    w = cell.w.clone().requires_grad_()
    options: Any = {"implementation": implementation}
    _, z, *_ = rk.linear_cell_forward(cell.u, w, cell.z0, *cell.numbers[:3], **options)
    with pytest.raises(RuntimeError, match="expected to be differentiated once"):
        torch.autograd.grad(z.sum(), w, create_graph=True)


@pytest.mark.parametrize("name", ["linear_cell_forward", "ops"])
@of_any_features
def test_transforms_that_would_lose_a_derivative_are_refused(
    name: str, implementation: str
) -> None:
    cell = make(6, 16, F32)
    op: Any = partial(rk.linear_cell_forward, implementation=implementation)
    if name == "ops":
        op = getattr(torch.ops, IMPLEMENTATIONS[implementation]).linear_cell_forward
    options = ("exact", 20, 0.0) if name == "ops" else ()

    def z(u: Tensor) -> Tensor:
        return op(u, cell.w, cell.z0, 0.5, 2, "tanh", *options)[1]

    tangent = (torch.ones_like(cell.u),)
    with pytest.raises(RuntimeError, match="got a call inside forward mode"):
        torch.func.jvp(z, (cell.u,), tangent)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="inside forward mode"):
        z(forward_ad.make_dual(cell.u, *tangent))
    for refused in (z, lambda u: torch.func.vmap(z)(u[None])):
        with pytest.raises(RuntimeError):
            torch.func.grad(lambda u, refused=refused: refused(u).sum())(cell.u)


@of_any_features
@pytest.mark.parametrize("batched", ["u", "w", "u and w", "z0"])
def test_vmap_has_the_bits_of_a_loop(
    implementation: str, batched: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its gradients too; and torch does not complain of a missing rule, to stderr before 2.14."""
    cell = make(6, 16, F32)
    given = {"u": cell.u, "w": cell.w, "z0": cell.z0}
    names = batched.split(" and ")
    chosen = [torch.stack([given[n], given[n] / 2], 1).requires_grad_() for n in names]

    def z(*tensors: Tensor) -> Tensor:
        u, w, z0 = {**given, **dict(zip(names, tensors, strict=True))}.values()
        return rk.linear_cell_forward(u, w, z0, 0.5, 2, implementation=implementation)[1]

    got = torch.func.vmap(z, in_dims=1)(*chosen)
    want = torch.stack([z(*sample) for sample in zip(*(t.unbind(1) for t in chosen), strict=True)])
    assert torch.equal(got, want)
    weight = torch.randn_like(got)
    assert all(map(torch.equal, *(torch.autograd.grad(out, chosen, weight) for out in (got, want))))
    assert "batching rule" not in capfd.readouterr().err


@of_any_features
def test_vmap_in_vmap_and_over_nothing(implementation: str) -> None:
    cell = make(6, 16, F32)
    us = torch.stack([cell.u, 2 * cell.u])

    def z(u: Tensor) -> Tensor:
        return rk.linear_cell_forward(u, cell.w, cell.z0, 0.5, 2, implementation=implementation).z

    want = torch.func.vmap(z)(us)
    assert torch.equal(torch.func.vmap(torch.func.vmap(z))(us[None]), want[None])
    with pytest.raises(ValueError, match=r"expected at least one sample in torch\.func\.vmap"):
        torch.func.vmap(z)(us[:0])


# ---- errors ----------------------------------------------------------------------------------

ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"act": "sigmoid"}, ValueError, "act: expected one of 'tanh', 'relu', 'gelu', 'silu'"),
    ({"state": "int32"}, ValueError, "state: expected one of 'exact', 'float32'"),
    ({"beta": 1.0}, ValueError, "beta: expected a number inside"),
    ({"beta": 0.999}, ValueError, "beta: expected a number at least 1/256 away from 1"),
    ({"beta": torch.tensor(0.5)}, TypeError, "beta: expected a Python number"),
    ({"steps": 0}, ValueError, "steps: expected an integer of at least 1"),
    ({"steps": 2.0}, TypeError, "steps: expected a Python integer"),
    ({"frac_bits": 31}, ValueError, "frac_bits: expected an integer from 0 to 30"),
    ({"w": torch.zeros(16, 8)}, ValueError, "w: expected a square matrix"),
    ({"w": torch.zeros(16, 16).double()}, TypeError, "w: expected torch.bfloat16"),
    ({"u": torch.zeros(6, 16).bfloat16()}, TypeError, "u: expected torch.float32, the dtype of w"),
    ({"u": torch.zeros(5, 16)}, ValueError, "u: expected shape .6, 16., the shape of z0"),
    ({"z0": torch.zeros(6, 16).half()}, TypeError, "z0: expected torch.float32"),
    ({"z0": torch.zeros(2, 3, 16)}, ValueError, "z0: expected shape .rows, 16."),
    ({"z0": torch.zeros(6, 16, device="meta")}, ValueError, "u: expected meta, the device of z0"),
    ({"w": [[1.0]]}, TypeError, "w: expected a tensor"),
    ({"tol": -1.0}, ValueError, "tol: expected a number of at least 0, got -1.0"),
    ({"tol": float("nan")}, ValueError, "tol: expected a number of at least 0"),
    ({"tol": "small"}, TypeError, "tol: expected a Python number"),
    ({"tol": torch.tensor(0.1)}, TypeError, "tol: expected a Python number"),
]


@pytest.mark.parametrize(("changed", "kind", "message"), ERRORS)
def test_errors(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    cell = make(6, 16, F32)
    arguments = {"u": cell.u, "w": cell.w, "z0": cell.z0, "beta": 0.5, "steps": 2, "act": "tanh"}
    with pytest.raises(kind, match=f"^linear_cell_forward: {message}"):
        rk.linear_cell_forward(**(arguments | changed))


@each(composite=[()], cpu=[()], triton=[()])
def test_digits_of_another_solve_are_refused(implementation: str) -> None:
    cell = make(6, 32, F32)
    out, _ = both_ways(replace(cell, steps=9), implementation)
    with pytest.raises(ValueError, match=r"^linear_cell_backward: digits: expected shape"):
        both_ways(cell, implementation, digits=out.digits)


def test_every_activation_is_tested() -> None:
    assert tuple(ACTS) == cell_checks.ACTS
