"""adjoint="functional": the reversible adjoint under transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils import _pytree as pytree

from tests.solver.cells import MLP
from tests.solver.solving import loop
from tests.tolerances import assert_within, gradient_bound, reconstruction_bound
from torch_revdeq import CaptureError, ReconstructionError, solve

F64 = torch.float64
OPTIONS: dict[str, Any] = {"adjoint": "functional", "state": F64, "max_steps": 3, "beta": 0.4}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)


def cell(z: Tensor, w: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(z @ w + x)


def by(adjoint: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    options = {**OPTIONS, "adjoint": adjoint}
    return lambda w, x, z0: solve(cell, z0, w, x, **options).z.square().sum()


def looped(w: Tensor, x: Tensor, z0: Tensor) -> Tensor:
    return loop(cell, z0, w, x, steps=3, beta=0.4)[0].square().sum()


def bound_of(w: Tensor, steps: int, beta: float) -> float:
    """Of first and second derivatives in float64, whose way back has as many products again.

    tanh has slopes of at most 1, which change by at most 0.77 of what is moved.
    """
    size = float(torch.linalg.matrix_norm(w.detach(), 2).max())
    back = reconstruction_bound(F64, beta, steps, lipschitz=size, magnitude=4.0)
    bound = gradient_bound(F64, back, 2 * steps, curvature=0.77 * size**2, terms=64)
    assert bound < 1e-3  # it says something
    return bound


# ---- derivatives ---------------------------------------------------------------------------------

TRANSFORMS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "grad": lambda loss: grad(loss, (0, 1, 2)),
    "vmap": lambda loss: vmap(loss, (None, 0, 0)),
    "vmap of grad": lambda loss: vmap(grad(loss), (None, 0, None)),
    "jacrev": lambda loss: jacrev(loss, 1),
    "jvp": lambda loss: lambda *t: jvp(loss, t, t)[1],
    "jacfwd": lambda loss: jacfwd(loss, 2),
    "vmap of jvp": lambda loss: vmap(lambda w, x, z: jvp(lambda w: loss(w, x, z), (w,), (w,))[1]),
    "hessian": hessian,
    "jacrev of jacrev": lambda loss: jacrev(jacrev(loss, 1), 2),
    "grad of vmap": lambda loss: grad(lambda *t: vmap(loss, (None, 0, 0))(*t).sum()),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("adjoint", ["functional", "backprop"])
def test_transforms(adjoint: str, name: str) -> None:
    w, x, z0 = (torch.randn(4, 4, dtype=F64) for _ in range(3))
    if name == "vmap of jvp":
        w = torch.randn(4, 4, 4, dtype=F64)
    transform = TRANSFORMS[name]
    got, want = (pytree.tree_leaves(transform(run)(w, x, z0)) for run in (by(adjoint), looped))
    assert_within(got, want, bound_of(w, 3, 0.4))


@pytest.mark.parametrize("second", [False, True], ids=["y0", "joined"])
def test_first_and_second_derivatives(second: bool) -> None:
    w, x, z0, y0 = (torch.randn(3, 3, dtype=F64, requires_grad=True) for _ in range(4))

    def run(w: Tensor, x: Tensor, z0: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        solution = solve(cell, z0, w, x, y0=y0 if second else None, **OPTIONS)
        return solution.z, solution.y

    inputs = (w, x, z0, y0 if second else y0.detach())
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


def gradients(solution: Any, tensors: list[Tensor]) -> list[Tensor]:
    losses = torch.stack([leaf.square().sum() for leaf in pytree.tree_leaves(solution.z)])
    return list(torch.autograd.grad(losses.sum(), tensors))


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_module_has_the_gradients_of_backprop(p: float) -> None:
    f, x = MLP(p=p).double(), torch.randn(6, 16, dtype=F64, requires_grad=True)
    found = []
    for adjoint in ("functional", "backprop"):
        torch.manual_seed(1)
        solution = solve(f, x * 0.1, x, adjoint=adjoint, max_steps=6)
        found.append([solution.z, *gradients(solution, [x, *f.parameters()])])
    assert_within(found[0], found[1], bound_of(f.b.weight @ f.a.weight / (1 - p), 6, 0.5))


def test_pytrees_of_mixed_dtypes_and_integers() -> None:
    def f(z: dict[str, Tensor], tables: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(z["h"] + tables[0][index])
        return {"h": h, "c": torch.tanh(z["c"] + h.mean(1, keepdim=True).float())}

    z0 = {"h": torch.zeros(3, 4, dtype=F64), "c": torch.zeros(3, 1)}
    table = torch.randn(5, 4, dtype=F64, requires_grad=True)
    found = []
    for adjoint in ("functional", "backprop"):
        options: dict[str, Any] = {**OPTIONS, "adjoint": adjoint}
        solution = solve(f, z0, [table], torch.tensor([0, 3, 3]), **options)
        assert solution.z["c"].dtype == torch.float32
        found.append([solution.z["c"], *gradients(solution, [table])])
    # In both the same roundings of "c" to float32: "h", of which the gradient is, is in float64.
    assert_within(found[0], found[1], bound_of(torch.ones(1, 1), 3, 0.4))


def test_gradients_in_16_bits_are_added_up_in_float32() -> None:
    """Many equal parts that bfloat16 would lose."""
    w = torch.ones((), dtype=torch.bfloat16, requires_grad=True)
    z0 = torch.ones(8)
    sums = []
    for accumulate in ("float32", "autograd"):
        z = solve(
            lambda z, w: z + w.float() * 2**-9,
            z0,
            w,
            adjoint="functional",
            state=torch.float32,
            beta=0.5,
            max_steps=300,
            check=False,
            accumulate=accumulate,
        ).z
        sums.append(float(torch.autograd.grad(z.sum(), w)[0]))
    assert sums[0] > 1.5 * sums[1]


class Noise(nn.Module):
    """Draws random numbers and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4, dtype=F64))
        self.drop = nn.Dropout(0.5)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.drop(torch.tanh(z @ self.w + x))


def test_random_numbers_come_again_in_forward_mode() -> None:
    f, x = Noise(), torch.randn(3, 4, dtype=F64)
    tangents = []
    for adjoint in ("functional", "backprop"):
        torch.manual_seed(1)
        options: dict[str, Any] = {**OPTIONS, "adjoint": adjoint}
        tangents.append(jvp(lambda x, o=options: solve(f, x * 0, x, **o).z, (x,), (x,)))
    bound = bound_of(2 * f.w, 3, 0.4)  # what dropout keeps is doubled
    assert_within(tangents[0], tangents[1], bound)


# ---- what would be lost --------------------------------------------------------------------------


def test_what_f_closes_over_is_refused_where_a_derivative_would_be_lost() -> None:
    w, x = torch.randn(4, 4, dtype=F64), torch.randn(4, 4, dtype=F64)

    def closes(w: Tensor, x: Tensor) -> Tensor:
        return solve(lambda z, x: torch.tanh(z @ w + x), x * 0, x, **OPTIONS).z.sum()

    with pytest.raises(CaptureError, match="pass it as an argument"):
        closes(w.clone().requires_grad_(), x)
    for transform in (grad(closes), jacrev(closes), jacfwd(closes), vmap(grad(closes), (None, 0))):
        with pytest.raises(CaptureError, match="pass it as an argument"):
            transform(w, x)
    with pytest.raises(CaptureError, match="pass it as an argument"):
        vmap(grad(lambda x: closes(w * x, x)))(x)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"choose torch.func.jvp"):
        closes(forward_ad.make_dual(w, w), x)


def test_what_f_closes_over_may_be_batched() -> None:
    b, x = torch.randn(3, 4, dtype=F64), torch.randn(4, dtype=F64)

    def run(b: Tensor) -> Tensor:
        return solve(lambda z, x: torch.tanh(z + x + b), x * 0, x, **OPTIONS).z

    assert torch.equal(vmap(run)(b), torch.stack([run(row) for row in b]))


FAR: dict[str, Any] = {"adjoint": "functional", "state": torch.float32, "beta": 0.9}


def test_a_way_back_that_does_not_arrive() -> None:
    f, x = MLP(), torch.randn(6, 16, requires_grad=True)
    with pytest.raises(ReconstructionError, match="precision limit of a float32 state"):
        solve(f, x * 0, x, max_steps=20, **FAR).z.sum().backward()
    solve(f, x * 0, x, max_steps=20, check=False, **FAR).z.sum().backward()
    lost = grad(lambda x: solve(f, x * 0, x, max_steps=20, **FAR).z.sum())(x.detach())
    assert lost.isnan().all()  # nothing can be raised there
    near = grad(lambda x: solve(f, x * 0, x, max_steps=2, **FAR).z.sum())(x.detach())
    assert near.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": "auto"}, "state: expected torch.float32 or torch.float64 with"),
        ({"state": torch.bfloat16}, "state: expected torch.float32 or torch.float64 with"),
        ({"beta": torch.tensor(0.5)}, "beta: expected numbers with"),
    ],
)
def test_what_it_does_not_take_of_states_and_beta(options: dict[str, Any], message: str) -> None:
    x = torch.randn(6, 16)
    with pytest.raises((ValueError, TypeError), match=message):
        solve(MLP(), x, x, **{**FAR, **options})
