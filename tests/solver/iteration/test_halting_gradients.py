"""``per_sample``: bit for bit the gradients of stored activations, whatever the way back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.solver.cells import CELLS, cell_and_input
from tests.solver.iteration.samples import (
    ADJOINTS,
    CONTRACTIONS,
    SAMPLES,
    TOL,
    explained,
    looped,
    problem,
    spread,
)
from tests.tolerances import assert_within
from torch_revdeq import solve
from torch_revdeq.iteration.halting import Halting
from torch_revdeq.iteration.stopping import Stopping
from torch_revdeq.testing import assert_exact_gradients

# ---- bit for bit -----------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("beta", [0.5, 0.7, 0.9, 1.2, [0.5, 0.8, 0.6, 1.1] * 3])
@pytest.mark.parametrize("name", CONTRACTIONS)
def test_exact_gradients_have_the_bits_of_stored_activations(
    name: str, beta: Any, adjoint: str
) -> None:
    (f, z0, x, rate), dims = problem(name), CONTRACTIONS[name][2]
    y0 = torch.randn_like(z0).requires_grad_()
    for every, start in ((1, None), (2, y0)):
        stats = assert_exact_gradients(
            f,
            z0,
            x,
            rate,
            y0=start,
            beta=beta,
            max_steps=12,
            tol=TOL,
            check_every=every,
            per_sample=dims,
            adjoint=adjoint,
        )
        spread(stats)
        assert stats.reconstruction_error == (None if adjoint == "checkpoint" else 0.0)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_cells_that_people_use(cell: str, adjoint: str) -> None:
    """Whose samples need not arrive: tol is such that some halt and others do not."""
    f, x = cell_and_input(cell)
    z0 = torch.randn_like(x)
    options: dict[str, Any] = {"beta": 0.6, "adjoint": adjoint, "per_sample": True}
    with torch.no_grad():
        y = solve(f, z0, x, beta=0.6, max_steps=3).y
        value = f(y, x)
        ratios = (y - value).flatten(1).norm(dim=1) / value.flatten(1).norm(dim=1)
    tol = float(ratios.sort().values[:2].mean())
    with torch.autocast("cpu", torch.bfloat16, enabled=cell != "conv"):
        stats = assert_exact_gradients(f, z0, x, tol=tol, max_steps=6, **options)
    spread(stats)
    assert stats.reconstruction_error == (None if adjoint == "checkpoint" else 0.0)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_trees_of_tensors(adjoint: str) -> None:
    """The largest residual of its leaves counts for a sample."""
    f, z0, x, rate = problem()

    def pair(z: dict[str, Tensor], x: Tensor, rate: Tensor) -> dict[str, Tensor]:
        a = f(z["b"].float(), x, rate)
        return {"a": 0.1 * a.view(SAMPLES, 2, 4), "b": a + z["a"].flatten(1).bfloat16()}

    start = {"a": torch.zeros(SAMPLES, 2, 4), "b": z0.bfloat16()}
    options: dict[str, Any] = {"tol": 0.05, "max_steps": 9, "per_sample": True}
    spread(assert_exact_gradients(pair, start, x, rate, beta=0.7, adjoint=adjoint, **options))

    def apart(z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return 0.5 * z[0] + 1.0, 0.25 * z[1] + 1.0

    near, far = torch.tensor([[2.0], [9.0]]), torch.tensor([9.0, 4 / 3])
    both = solve(apart, (near, far), tol=0.05, max_steps=40, per_sample=True).stats
    alone = [
        solve(lambda z, i=i: apart((z, z))[i], start, tol=0.05, max_steps=40).stats.steps
        for i, start in ((1, far[:1]), (0, near[1:]))
    ]
    assert alone[0] != alone[1]
    assert both.sample_steps is not None and both.sample_steps.tolist() == alone


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("rng", ["auto", "shared"])
def test_dropout(rng: str, adjoint: str) -> None:
    f, z0, x, rate = problem("mixing", p=0.1)
    options: dict[str, Any] = {"tol": 0.2, "max_steps": 9, "beta": 0.7, "per_sample": True}
    spread(assert_exact_gradients(f, z0, x, rate, rng=rng, adjoint=adjoint, **options))


@pytest.mark.parametrize("count", [1, 5, 100])
def test_kept_graphs(count: int) -> None:
    f, z0, x, rate = problem("mixing")
    options: dict[str, Any] = {"tol": TOL, "max_steps": 11, "beta": 0.8, "per_sample": True}
    spread(assert_exact_gradients(f, z0, x, rate, store_last=count, **options))
    gradients, stats = [], []
    for kept in (count, 0):
        solution = solve(f, z0, x, rate, store_last=kept, state=torch.float64, **options)
        gradients.append(torch.autograd.grad(solution.z.square().sum(), [x, rate, *f.parameters()]))
        stats.append(solution.stats)
    assert_within(gradients[0], gradients[1], explained(11, *stats, f=torch.float32))


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_beta_that_learns(adjoint: Any) -> None:
    f, z0, x, rate = problem("mixing")

    seen: list[Any] = []

    def gradients(adjoint: Any, **options: Any) -> tuple[Tensor, ...]:
        beta = torch.tensor(0.7, requires_grad=True, dtype=z0.dtype)
        how: dict[str, Any] = {"tol": TOL, "max_steps": 9, "per_sample": True, **options}
        solution = solve(f, z0, x, rate, beta=beta, adjoint=adjoint, **how)
        spread(solution.stats)
        seen.append(solution.stats)
        loss = solution.z.square().sum() + solution.y.sum()
        return torch.autograd.grad(loss, [beta, x, rate, *f.parameters()])

    assert all(map(torch.equal, gradients(adjoint), gradients("backprop")))
    if adjoint == "reversible":
        got, want = (gradients(how, state=torch.float64) for how in (adjoint, "backprop"))
        assert_within(got, want, explained(9, *seen[-2:], f=torch.float32))


def test_a_beta_for_every_channel() -> None:
    f, z0, x, rate = problem("mixing", torch.float64)
    beta = torch.linspace(0.4, 0.7, 8, dtype=torch.float64).requires_grad_()
    wrt = [beta, x, rate, *f.parameters()]
    solution = solve(f, z0, x, rate, beta=beta, tol=TOL, max_steps=9, per_sample=True)
    z, _, taken, _ = looped(lambda z: f(z, x, rate), z0, beta, 9)
    assert spread(solution.stats) == taken
    got, want = (torch.autograd.grad(end.square().sum(), wrt) for end in (solution.z, z))
    assert_within(got, want, explained(9, solution.stats))


def test_a_batch_that_is_not_the_first_in_memory() -> None:
    """The same residuals, whatever the strides, and sums in f in the order of the state."""
    f, z0, x, rate = problem("mixing")
    options: dict[str, Any] = {"tol": TOL, "max_steps": 9, "per_sample": True}
    plain = assert_exact_gradients(f, z0, x, rate, **options)
    for adjoint in ("reversible", "hooks"):
        turned = assert_exact_gradients(f, z0.T.contiguous().T, x, rate, adjoint=adjoint, **options)
        assert spread(turned) == spread(plain)


# ---- float states ----------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize(
    ("state", "rtol"),
    [(torch.float64, 1e-6), (torch.float32, 1e-3), (torch.bfloat16, 0.1), (torch.float16, 0.03)],
    ids=str,
)
@pytest.mark.parametrize("name", ["mixing", "tokens"])
def test_float_states(name: str, state: torch.dtype, rtol: float, adjoint: str) -> None:
    dtype = state if state in (torch.bfloat16, torch.float16) else torch.float32
    (f, z0, x, rate), dims = problem(name), CONTRACTIONS[name][2]
    f, z0, rate = f.to(dtype), z0.to(dtype), rate.detach().to(dtype)
    x = x.detach().to(dtype).requires_grad_()
    options: dict[str, Any] = {"tol": 0.1, "max_steps": 6, "beta": 0.4, "per_sample": dims}
    stats = assert_exact_gradients(
        f, z0, x, rate, rtol=rtol, state=state, adjoint=adjoint, **options
    )
    spread(stats)


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "backprop"])
def test_gradcheck_and_gradgradcheck(adjoint: Any) -> None:
    """Finite differences, of first and second order, do not move the steps at which tol is met."""
    f, z0, x, rate = problem("mixing", torch.float64, d=2)
    weight, beta = f.w.weight, torch.tensor(0.4, dtype=torch.float64)
    options: dict[str, Any] = {"tol": 0.1, "max_steps": 5, "per_sample": True}
    if adjoint != "hooks":
        beta.requires_grad_()

    def value(z0: Tensor, x: Tensor, rate: Tensor, beta: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        solution = solve(f, z0, x, rate, beta=beta, adjoint=adjoint, **options)
        spread(solution.stats)
        return solution.z, solution.y

    inputs = (z0.requires_grad_(), x, rate, beta, weight)
    assert torch.autograd.gradcheck(value, inputs)
    if adjoint == "backprop":  # f reads the weight itself, not what it is checked with
        passed = partial(value, _=weight)
        assert torch.autograd.gradcheck(passed, inputs[:-1], check_forward_ad=True)
    if adjoint != "hooks":  # which refuses what it saved and has overwritten since
        assert torch.autograd.gradgradcheck(value, inputs)


def test_second_derivatives_follow_the_record() -> None:
    """Not a new judgement, which would find no tol."""
    f, z0, x, rate = problem("mixing", torch.float64)

    def second(run: Callable[[], Tensor]) -> Tensor:
        (grad,) = torch.autograd.grad(run().square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    options: dict[str, Any] = {"tol": TOL, "max_steps": 8, "per_sample": True}
    want = second(lambda: looped(lambda z: f(z, x, rate), z0, 0.5, 8)[0])
    for adjoint in ("reversible", "hooks", "backprop"):
        solution = solve(f, z0, x, rate, adjoint=adjoint, **options)
        got = second(lambda z=solution.z: z)
        # As many products again on the way back.
        assert_within([got], [want], explained(2 * 8, solution.stats))


# ---- another device --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "beta", [0.7, torch.tensor(0.7, requires_grad=True)], ids=["0.7", "learns"]
)
def test_on_another_device_masks_stand_in_for_a_look(
    beta: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host does not know in the forward pass whether all move, and the end comes a check later.

    Steps in which nothing moves change nothing, so that all bits are those of a CPU.
    """
    f, z0, x, rate = problem("mixing")
    options: dict[str, Any] = {"tol": TOL, "max_steps": 40, "per_sample": True, "beta": beta}

    def observed(adjoint: Any) -> tuple[Any, tuple[Tensor, ...]]:
        solution = solve(f, z0, x, rate, adjoint=adjoint, **options)
        loss = solution.z.square().sum() + solution.y.sum()
        wrt = [x, rate, *f.parameters()]
        grads = torch.autograd.grad(loss, wrt)
        return solution.stats, (solution.z, solution.y, *grads)

    now, want = observed("backprop")
    begin, judge = Stopping.__init__, Halting.__init__

    def lagging(self: Stopping, *args: Any) -> None:
        begin(self, *args)
        self.lag = 1

    def blind(self: Halting, *args: Any) -> None:
        judge(self, *args)
        self.looks = False

    monkeypatch.setattr(Stopping, "__init__", lagging)
    monkeypatch.setattr(Halting, "__init__", blind)
    for adjoint in ("reversible", "hooks", "checkpoint", "backprop"):
        later, got = observed(adjoint)
        assert later.steps == now.steps + 1
        assert later.sample_steps.tolist() == spread(now)
        assert later.converged and later.residual == now.residual
        assert all(map(torch.equal, got, want))
