"""The equilibrium cell in one op: against float64 autograd, against solve, and what torch asks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import revdeq_kernels as rk
from revdeq_kernels.ops.cell import checks as cell_checks
from revdeq_kernels.ops.cell import choice as cell_choice
from revdeq_kernels.ops.cell.arguments import Gradients, Solved
from tests.cell.linear_cells import ACTS, Cell, Outcome, make, run
from tests.cell.tolerances import assert_within_bounds
from tests.conftest import BACKENDS, BETAS, same_bits
from torch_revdeq import solve

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

PRECISIONS = [
    (F32, "exact", 0.5, 4),
    (F32, "exact", 0.8, 3),
    (F32, "exact", 1.3, 2),
    (F32, "float32", 0.5, 3),
    (F16, "exact", 0.5, 3),
    (F16, "exact", 0.75, 2),
    (F16, "float32", 0.5, 1),
    (BF16, "exact", 0.5, 2),
    (BF16, "exact", 0.6, 2),
    (BF16, "float32", 0.5, 1),
]
"""(dtype of w, state, beta, steps), so few that the bounds stay below the numbers they are of."""

IMPLEMENTATIONS = ["composite", *(["triton"] if "triton" in BACKENDS else [])]

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
precisions = pytest.mark.parametrize(("dtype", "state", "beta", "steps"), PRECISIONS)
acts = pytest.mark.parametrize("act", list(ACTS))


# ---- against the definition in real numbers --------------------------------------------------


@implementations
@acts
@precisions
def test_values_and_gradients_are_those_of_stored_activations(
    implementation: str, act: str, dtype: torch.dtype, state: str, beta: float, steps: int
) -> None:
    cell = make(37, 32, dtype, act=act, state=state, beta=beta, steps=steps)
    assert_within_bounds(cell, run(cell, implementation=implementation))


@pytest.mark.parametrize(("rows", "d"), [(1, 1), (3, 7), (70, 33), (5, 64)])
def test_any_shape(rows: int, d: int) -> None:
    cell = make(rows, d, F32, steps=2)
    assert_within_bounds(cell, run(cell))


@implementations
def test_no_rows(implementation: str) -> None:
    got = run(make(0, 32, F32), implementation=implementation)
    assert got.y.shape == got.grad_z0.shape == (0, 32)
    assert torch.equal(got.grad_w, torch.zeros(32, 32))


@implementations
def test_arguments_of_any_strides(implementation: str) -> None:
    cell = make(12, 32, F32)
    given = [*cell.tensors, cell.grad_y, cell.grad_z]
    u, w, z0, grad_y, grad_z = (t.t().contiguous().t() for t in given)
    assert not u.is_contiguous()
    results = [
        run(cell, implementation=implementation) for cell in (cell, Cell(u, w, z0, grad_y, grad_z))
    ]
    assert all(map(torch.equal, *results))


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
        rows = zip(Outcome._fields, run(cell), by_solve(cell, adjoint), strict=True)
        differ = [name for name, got, want in rows if not torch.equal(got, want)]
        assert not differ, beta


def test_a_float_cell_has_the_bits_of_solve() -> None:
    cell = make(21, 32, F32, state="float32", steps=3)
    assert all(map(torch.equal, run(cell), by_solve(cell, "reversible")))


# ---- the way back ----------------------------------------------------------------------------


def both_ways(cell: Cell, implementation: str, **changed: Tensor) -> Gradients:
    """The results of the backward op, where arguments may be others than those of the forward."""
    options: Any = cell.numbers._asdict() | {"implementation": implementation}
    out = rk.linear_cell_forward(*cell.tensors, **options)
    given = out.ends(cell.grad_y, cell.grad_z, cell.numbers)._asdict() | cell.tensors._asdict()
    return rk.linear_cell_backward(**(given | changed), **options)


DEPTHS = [("composite", dtype, beta, (1, 2, 9, 40)) for dtype in (F32, BF16, F16) for beta in BETAS]
if "triton" in IMPLEMENTATIONS:  # every form, base and sign with one dtype: the interpreter is slow
    DEPTHS += [
        ("triton", (BF16, F16, F32)[k % 3], beta, (1, 2, 3, 5)) for k, beta in enumerate(BETAS)
    ]


@pytest.mark.parametrize(("implementation", "dtype", "beta", "depths"), DEPTHS)
def test_an_exact_cell_comes_back_bit_for_bit_from_any_depth(
    implementation: str, dtype: torch.dtype, beta: float, depths: tuple[int, ...]
) -> None:
    for act, steps in zip(ACTS, depths, strict=True):
        cell = make(40, 32, dtype, beta=beta, steps=steps, act=act, frac_bits=16)
        *grads, distance, lost = both_ways(cell, implementation)
        assert distance.item() == 0.0 and lost.item() == 0
        assert all(bool(grad.isfinite().all()) for grad in grads)


@implementations
@pytest.mark.parametrize("changed", ["w", "u", "digits", "z0"])
def test_what_changed_since_the_forward_pass_gives_nan(changed: str, implementation: str) -> None:
    cell = make(40, 32, F32, steps=6)
    if changed == "digits":
        numbers: Any = cell.numbers[:3]
        out = rk.linear_cell_forward(*cell.tensors, *numbers, implementation=implementation)
        other = out[3].clone()
        other.view(len(other), -1)[1, 40] ^= 1
    else:
        other = getattr(cell, changed).clone()
        other[7, 3] += 1e-4
    grad_u, grad_w, grad_z0, distance, lost = both_ways(cell, implementation, **{changed: other})
    wrong = grad_u.isnan().any(1)
    assert distance.item() > 0 and lost.item() == wrong.sum() and bool(grad_w.isnan().all())
    assert torch.equal(wrong, grad_z0.isnan().all(1)) and torch.equal(wrong, grad_u.isnan().all(1))
    assert wrong.all() if changed == "w" else wrong.sum() == 1  # rows have nothing in common else


@implementations
def test_a_float_state_past_its_precision_gives_nan(implementation: str) -> None:
    cell = make(8, 32, F32, state="float32", beta=0.8, steps=24)
    grad_u, grad_w, grad_z0, distance, lost = both_ways(cell, implementation)
    assert distance.item() > 1e-3 and lost.item() == 8
    assert all(bool(grad.isnan().all()) for grad in (grad_u, grad_w, grad_z0))


@implementations
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e4])
def test_a_number_out_of_range_raises_the_flag(bad: float, implementation: str) -> None:
    cell = make(8, 32, F32)
    numbers: Any = (0.5, 4, "relu")
    options: Any = {"implementation": implementation}
    u = cell.u.clone()
    u[3, 5] = bad
    out = rk.linear_cell_forward(u, cell.w, cell.z0, *numbers, **options)
    assert out.flag.item() != 0
    assert bool(out.y[3].isnan().any()) and bool(out.z[3].isnan().any())
    out = rk.linear_cell_forward(*cell.tensors, *numbers, **options)
    assert out.flag.item() == 0


# ---- autograd and torch.compile --------------------------------------------------------------


@implementations
@pytest.mark.parametrize(("dtype", "state"), [(F32, "exact"), (BF16, "exact"), (F32, "float32")])
def test_opcheck(dtype: torch.dtype, state: str, implementation: str) -> None:
    cell = make(5, 32, dtype, state=state, steps=2)
    namespace = getattr(torch.ops, cell_choice.IMPLEMENTATIONS[implementation])
    leaves = [t.clone().requires_grad_() for t in cell.tensors]
    op = namespace.linear_cell_forward.default
    torch.library.opcheck(op, (*leaves, *cell.numbers))
    out = Solved(*op(*(t.detach() for t in leaves), *cell.numbers))
    ends = out.ends(cell.grad_y, cell.grad_z, cell.numbers)
    given = (t.clone() for t in ends)
    back = namespace.linear_cell_backward.default
    torch.library.opcheck(back, (*given, *cell.tensors, *cell.numbers))


@implementations
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


def test_gradients_that_nobody_asked_for_and_that_did_not_arrive() -> None:
    cell = replace(make(6, 16, F32), grad_y=torch.zeros(6, 16))
    want = run(cell)
    w = cell.w.clone().requires_grad_()
    _, z, *_ = rk.linear_cell_forward(cell.u, w, cell.z0, *cell.numbers[:3])
    assert torch.equal(torch.autograd.grad(z, w, cell.grad_z)[0], want.grad_w)


def test_a_changed_argument_is_seen_by_autograd() -> None:
    cell = make(6, 16, F32)
    w = cell.w.clone().requires_grad_()
    _, z, *_ = rk.linear_cell_forward(cell.u, w, cell.z0, *cell.numbers[:3])
    with torch.no_grad():
        w.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_a_second_derivative_is_refused() -> None:
    cell = make(6, 16, F32)
    w = cell.w.clone().requires_grad_()
    _, z, *_ = rk.linear_cell_forward(cell.u, w, cell.z0, *cell.numbers[:3])
    with pytest.raises(RuntimeError, match="expected to be differentiated once"):
        torch.autograd.grad(z.sum(), w, create_graph=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("name", ["linear_cell_forward", "ops"])
def test_transforms_that_would_lose_a_derivative_are_refused(name: str) -> None:
    cell = make(6, 16, F32)
    op = torch.ops.revdeq.linear_cell_forward if name == "ops" else rk.linear_cell_forward
    options = ("exact", 20, 0.0) if name == "ops" else ()

    def z(u: Tensor) -> Tensor:
        return op(u, cell.w, cell.z0, 0.5, 2, "tanh", *options)[1]

    tangent = (torch.ones_like(cell.u),)
    with pytest.raises(RuntimeError, match="got a call inside of forward mode"):
        torch.func.jvp(z, (cell.u,), tangent)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="inside of forward mode"):
        z(forward_ad.make_dual(cell.u, *tangent))
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda u: z(u).sum())(cell.u)


def test_vmap_has_the_bits_of_a_loop() -> None:
    cell = make(6, 16, F32)
    us = torch.stack([cell.u, 2 * cell.u])
    together = torch.func.vmap(lambda u: rk.linear_cell_forward(u, cell.w, cell.z0, 0.5, 2)[1])(us)
    one_by_one = [rk.linear_cell_forward(u, cell.w, cell.z0, 0.5, 2)[1] for u in us]
    assert torch.equal(together, torch.stack(one_by_one))


# ---- errors ----------------------------------------------------------------------------------

ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"act": "sigmoid"}, ValueError, "act: expected one of 'tanh', 'relu', 'gelu', 'silu'"),
    ({"state": "int32"}, ValueError, "state: expected one of 'exact', 'float32'"),
    ({"beta": 1.0}, ValueError, "beta: expected a number inside"),
    ({"beta": 0.999}, ValueError, "beta: expected .1 - beta. >= 1/256"),
    ({"beta": torch.tensor(0.5)}, TypeError, "beta: expected a Python number"),
    ({"steps": 0}, ValueError, "steps: expected an integer from 1 on"),
    ({"steps": 2.0}, TypeError, "steps: expected a Python integer"),
    ({"frac_bits": 31}, ValueError, "frac_bits: expected an integer from 0 to 30"),
    ({"w": torch.zeros(16, 8)}, ValueError, "w: expected a square matrix"),
    ({"w": torch.zeros(16, 16).double()}, TypeError, "w: expected torch.bfloat16"),
    ({"u": torch.zeros(6, 16).bfloat16()}, TypeError, "u: expected torch.float32, the dtype of w"),
    ({"u": torch.zeros(5, 16)}, ValueError, "u: expected shape .6, 16., that of z0"),
    ({"z0": torch.zeros(6, 16).half()}, TypeError, "z0: expected torch.float32"),
    ({"z0": torch.zeros(2, 3, 16)}, ValueError, "z0: expected shape .rows, 16."),
    ({"z0": torch.zeros(6, 16, device="meta")}, ValueError, "u: expected meta, the device of z0"),
    ({"w": [[1.0]]}, TypeError, "w: expected a tensor"),
]


@pytest.mark.parametrize(("changed", "kind", "message"), ERRORS)
def test_errors(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    cell = make(6, 16, F32)
    arguments = {"u": cell.u, "w": cell.w, "z0": cell.z0, "beta": 0.5, "steps": 2, "act": "tanh"}
    with pytest.raises(kind, match=f"^linear_cell_forward: {message}"):
        rk.linear_cell_forward(**(arguments | changed))


@implementations
def test_digits_of_another_solve_are_refused(implementation: str) -> None:
    cell = make(6, 32, F32)
    numbers: Any = (0.5, 9)
    digits = rk.linear_cell_forward(*cell.tensors, *numbers, implementation=implementation)[3]
    with pytest.raises(ValueError, match=r"^linear_cell_backward: digits: expected shape"):
        both_ways(cell, implementation, digits=digits)


def test_every_activation_is_tested() -> None:
    assert tuple(ACTS) == cell_checks.ACTS
